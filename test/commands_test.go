package test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"overlap/lifecycle/control"
	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
)

// patience is how long an event may take on a busy machine. Nothing waits so long unless the
// test fails.
const patience = 30 * time.Second

// commands are what scripts have beyond testscript's own:
//
//	freeport VAR…                    find ports that nobody listens on
//	start VAR [-nohup] COMMAND…      start a process; $VAR is its pid, $WORK/VAR.log what it says
//	waitlog VAR PATTERN              wait until it says so
//	exits VAR CODE                   wait until it has ended, with that code
//	signal NAME VAR                  send a signal: TERM, INT, HUP, QUIT, USR1, USR2, KILL, STOP, CONT
//	waitserving NAME GENERATION      wait until that generation serves
//	waitgone NAME GENERATION         wait until it has ended
//	code N COMMAND…                  run a command that must exit with the code
//	http METHOD URL [CHECKS]         make a request, once; -unix PATH, -insecure, -body TEXT,
//	                                 -status N, -has TEXT, -hasnot TEXT, -generation N
//	makecert CERT KEY                make a certificate for 127.0.0.1
//	chown UID FILE                   give a file away
//	waitfile FILE                    wait until it is there
//	benchgone                        wait until benches have left neither process nor file
var commands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"freeport":    freeport,
	"start":       start,
	"waitlog":     waitlog,
	"exits":       exits,
	"signal":      sendSignal,
	"waitserving": waitserving,
	"waitgone":    waitgone,
	"code":        exitCode,
	"http":        request,
	"makecert":    makecert,
	"chown":       chown,
	"waitfile":    waitfile,
	"benchgone":   benchGone,
}

func condition(name string) (bool, error) {
	if name == "root" {
		return os.Geteuid() == 0, nil
	}
	return false, fmt.Errorf("unknown condition %q", name)
}

// started are the processes of one script, by the name of their variable.
type started struct {
	mu  sync.Mutex
	all map[string]*background
}

type background struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

type startedKey struct{}

func setup(env *testscript.Env) error {
	// A program with the race detector waits a second before it exits, unless told otherwise.
	env.Setenv("GORACE", "atexit_sleep_ms=20 "+os.Getenv("GORACE"))
	root := filepath.Join(env.WorkDir, "state")
	env.Setenv("OVERLAP_STATE_DIR", root)
	env.Setenv("NL", "\n")
	program, err := exec.LookPath("overlap")
	if err != nil {
		return err
	}
	env.Setenv("OVERLAP", program) // to be copied and replaced
	all := &started{all: map[string]*background{}}
	env.Values[startedKey{}] = all
	// Where benches have their files: of this script alone, and in memory if there is such a place.
	benches, err := state.MkdirTemp("overlap-script-")
	if err != nil {
		return err
	}
	env.Setenv("XDG_RUNTIME_DIR", benches)
	env.Defer(func() {
		all.end(env.WorkDir)
		all.end(benches)
		os.RemoveAll(benches)
	})
	return nil
}

// end kills what is left of a script's processes, those that its processes started too: they
// are in the records below the script's directory, and in the groups of those that live.
func (s *started) end(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".json") {
			if data, err := os.ReadFile(path); err == nil {
				if r, err := state.Parse(data); err == nil {
					killProcess(r.Owner)
					if r.Program != nil {
						killProcess(*r.Program)
					}
				}
			}
		}
		return nil
	})
	for _, b := range s.all {
		select {
		case <-b.done:
		default:
			syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL)
			<-b.done
		}
	}
}

func killProcess(id process.Identity) {
	if h, err := process.Open(id); err == nil {
		h.Signal(syscall.SIGKILL)
		h.Close()
	}
}

func processes(ts *testscript.TestScript) *started { return ts.Value(startedKey{}).(*started) }

func (s *started) get(ts *testscript.TestScript, name string) *background {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.all[name]
	if b == nil {
		ts.Fatalf("nothing was started as %s", name)
	}
	return b
}

// nextPort goes through ports below the range that the kernel gives to clients, so that a
// client's port cannot take one between the search and the use.
var nextPort atomic.Uint32

func init() { nextPort.Store(20000 + mrand.Uint32N(8000)) }

func freeport(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		port, err := findPort()
		ts.Check(err)
		ts.Setenv(name, strconv.Itoa(port))
	}
}

func findPort() (int, error) {
	for range 1000 {
		port := 20000 + int(nextPort.Add(1))%10000
		if ln, err := net.Listen("tcp", ":"+strconv.Itoa(port)); err == nil {
			ln.Close()
			return port, nil
		}
	}
	return 0, errors.New("no free port")
}

func start(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: start VAR [-nohup] COMMAND…")
	}
	name, words := args[0], args[1:]
	if words[0] == "-nohup" {
		words = append([]string{"sh", "-c", `trap "" HUP; exec "$@"`, "sh"}, words[1:]...)
	}
	path := words[0]
	if !strings.ContainsRune(path, filepath.Separator) {
		var err error
		path, err = lookPath(path, ts.Getenv("PATH"))
		ts.Check(err)
	}
	log, err := os.Create(filepath.Join(ts.Getenv("WORK"), name+".log"))
	ts.Check(err)
	defer log.Close()
	b := &background{cmd: &exec.Cmd{Path: path, Args: words, Dir: ts.MkAbs("."), Env: environment(ts), Stdout: log, Stderr: log,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true}}, done: make(chan struct{})}
	ts.Check(b.cmd.Start())
	go func() { b.err = b.cmd.Wait(); close(b.done) }()
	s := processes(ts)
	s.mu.Lock()
	s.all[name] = b
	s.mu.Unlock()
	ts.Setenv(name, strconv.Itoa(b.cmd.Process.Pid))
}

// passed are the variables that a started process gets, where they are set.
var passed = []string{"PATH", "HOME", "TMPDIR", "WORK", "GORACE", "XDG_RUNTIME_DIR", "OVERLAP_STATE_DIR",
	"OVERLAP_LISTEN", "OVERLAP_DIR", "OVERLAP_DELAY", "OVERLAP_RUN_LISTEN", "OVERLAP_RUN_HEALTH"}

func environment(ts *testscript.TestScript) []string {
	var env []string
	for _, name := range passed {
		if v := ts.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return append(env, "PWD="+ts.MkAbs("."))
}

func lookPath(name, path string) (string, error) {
	for _, dir := range filepath.SplitList(path) {
		at := filepath.Join(dir, name)
		if info, err := os.Stat(at); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return at, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}

// eventually waits until is returns no error.
func eventually(ts *testscript.TestScript, what string, is func() error) {
	deadline := time.Now().Add(patience)
	for {
		err := is()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s: %v", what, err)
		}
		time.Sleep(5 * time.Millisecond) // no event tells
	}
}

func waitlog(ts *testscript.TestScript, _ bool, args []string) {
	pattern, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	path := filepath.Join(ts.Getenv("WORK"), args[0]+".log")
	eventually(ts, "wait for the log", func() error {
		data, err := os.ReadFile(path)
		if err != nil || pattern.Match(data) {
			return err
		}
		return fmt.Errorf("no %q in:\n%s", args[1], data)
	})
}

func exits(ts *testscript.TestScript, _ bool, args []string) {
	b := processes(ts).get(ts, args[0])
	log := func() string {
		data, _ := os.ReadFile(filepath.Join(ts.Getenv("WORK"), args[0]+".log"))
		return string(data)
	}
	select {
	case <-b.done:
	case <-time.After(patience):
		ts.Fatalf("%s still runs, and said:\n%s", args[0], log())
	}
	if got := strconv.Itoa(b.cmd.ProcessState.ExitCode()); got != args[1] {
		ts.Fatalf("%s ended with %s (%v), and said:\n%s", args[0], got, b.err, log())
	}
}

var signals = map[string]syscall.Signal{"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "HUP": syscall.SIGHUP,
	"USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2, "QUIT": syscall.SIGQUIT, "KILL": syscall.SIGKILL, "STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT,
	"WINCH": syscall.SIGWINCH, "ALRM": syscall.SIGALRM, "IO": syscall.SIGIO}

func sendSignal(ts *testscript.TestScript, _ bool, args []string) {
	sig, ok := signals[args[0]]
	if !ok {
		ts.Fatalf("unknown signal %s", args[0])
	}
	ts.Check(processes(ts).get(ts, args[1]).cmd.Process.Signal(sig))
}

func waitserving(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	eventually(ts, "wait until generation "+args[1]+" serves", func() error {
		dir, err := state.Find(ts.Getenv("OVERLAP_STATE_DIR"), args[0])
		if err != nil {
			return err
		}
		defer dir.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		s, err := control.Dial(dir.SocketPath(n)).Status(ctx)
		if err != nil {
			return errors.Join(err, logs(ts))
		}
		if len(s.Generations) != 1 || s.Generations[0].State != state.Serving {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
}

// logs is everything that the script's processes have said.
func logs(ts *testscript.TestScript) error {
	var all bytes.Buffer
	paths, _ := filepath.Glob(filepath.Join(ts.Getenv("WORK"), "*.log"))
	for _, path := range paths {
		data, _ := os.ReadFile(path)
		fmt.Fprintf(&all, "\n%s:\n%s", filepath.Base(path), data)
	}
	return errors.New(all.String())
}

func waitgone(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	eventually(ts, "wait until generation "+args[1]+" is gone", func() error {
		dir, err := state.Find(ts.Getenv("OVERLAP_STATE_DIR"), args[0])
		if err != nil {
			return err
		}
		defer dir.Close()
		if dir.Owned(n) {
			return errors.New("it lives")
		}
		return nil
	})
}

func exitCode(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, not %d%v", got, want, logs(ts))
	}
}

func request(ts *testscript.TestScript, _ bool, args []string) {
	method, url, args := args[0], args[1], args[2:]
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	status, body, generation := 200, "", ""
	var has, hasnot []string
	for len(args) > 0 {
		switch {
		case args[0] == "-insecure":
			transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
			args = args[1:]
			continue
		case len(args) == 1:
			ts.Fatalf("%s wants a value", args[0])
		}
		switch v := args[1]; args[0] {
		case "-unix":
			transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", v)
			}
		case "-body":
			body = v
		case "-status":
			var err error
			status, err = strconv.Atoi(v)
			ts.Check(err)
		case "-has":
			has = append(has, v)
		case "-hasnot":
			hasnot = append(hasnot, v)
		case "-generation":
			generation = v
		default:
			ts.Fatalf("unknown flag %s", args[0])
		}
		args = args[2:]
	}
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	ts.Check(err)
	client := &http.Client{Transport: transport, Timeout: patience}
	resp, err := client.Do(req)
	if err != nil {
		ts.Fatalf("%v%v", err, logs(ts))
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	ts.Check(err)
	switch g := resp.Header.Get("Overlap-Generation"); {
	case resp.StatusCode != status:
		ts.Fatalf("status %d, not %d: %s", resp.StatusCode, status, got)
	case slices.ContainsFunc(has, func(text string) bool { return !bytes.Contains(got, []byte(text)) }):
		ts.Fatalf("one of %q is not in %q", has, got)
	case slices.ContainsFunc(hasnot, func(text string) bool { return bytes.Contains(got, []byte(text)) }):
		ts.Fatalf("one of %q in %q", hasnot, got)
	case generation != "" && g != generation:
		ts.Fatalf("answered by generation %s, not %s", g, generation)
	}
}

func makecert(ts *testscript.TestScript, _ bool, args []string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	ts.Check(err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	for i, block := range []*pem.Block{{Type: "CERTIFICATE", Bytes: cert}, {Type: "PRIVATE KEY", Bytes: der}} {
		ts.Check(os.WriteFile(ts.MkAbs(args[i]), pem.EncodeToMemory(block), 0o600))
	}
}

func chown(ts *testscript.TestScript, _ bool, args []string) {
	uid, err := strconv.Atoi(args[0])
	ts.Check(err)
	ts.Check(os.Chown(ts.MkAbs(args[1]), uid, -1))
}

// stranger listens on an address and waits to be ended.
func stranger(args []string) int {
	ln, err := net.Listen("tcp", args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer ln.Close()
	fmt.Println("listening")
	for {
		time.Sleep(time.Hour)
	}
}

// benchesOf are the directories of a script's benches that are there, or named by a process.
func benchesOf(ts *testscript.TestScript) (files []string, processes []string) {
	for _, parent := range []string{ts.Getenv("XDG_RUNTIME_DIR"), ts.Getenv("TMPDIR")} {
		pattern := filepath.Join(parent, "overlap-bench-")
		found, _ := filepath.Glob(pattern + "*")
		files = append(files, found...)
		lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, path := range lines {
			if line, err := os.ReadFile(path); err == nil && strings.Contains(string(line), pattern) {
				processes = append(processes, string(bytes.ReplaceAll(bytes.TrimRight(line, "\x00"), []byte{0}, []byte{' '})))
			}
		}
	}
	return files, processes
}

func waitfile(ts *testscript.TestScript, _ bool, args []string) {
	eventually(ts, "wait for a file", func() error {
		_, err := os.Stat(ts.MkAbs(args[0]))
		return err
	})
}

func benchGone(ts *testscript.TestScript, _ bool, args []string) {
	eventually(ts, "wait until nothing of a bench is left", func() error {
		if files, running := benchesOf(ts); len(files)+len(running) > 0 {
			return fmt.Errorf("left: %q %q", files, running)
		}
		return nil
	})
}
