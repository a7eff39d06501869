package launcher_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"overlap/lifecycle/cli"
	"overlap/lifecycle/control"
	"overlap/lifecycle/internal/trial"
	"overlap/lifecycle/launcher"
	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
	"overlap/reuse"
	"overlap/test/netns"
)

const (
	// envLauncher names the configuration of a launcher: the test binary itself is `overlap run`.
	envLauncher = "OVERLAP_TEST_LAUNCHER"
	// envRoot marks every process of a service, so that a test finds what it left behind.
	envRoot = "OVERLAP_TEST_ROOT"
)

func TestMain(m *testing.M) {
	launcher.Main()
	if len(os.Args) == 3 && os.Args[1] == "program" {
		os.Exit(program(os.Args[2]))
	}
	if len(os.Args) > 1 && os.Args[1] == "overlap" {
		os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr))
	}
	if len(os.Args) > 2 && os.Args[1] == "filtered" {
		fmt.Fprintln(os.Stderr, execFiltered(os.Args[2:]))
		os.Exit(96)
	}
	if path := os.Getenv(envLauncher); path != "" {
		os.Unsetenv(envLauncher)
		os.Exit(launch(path))
	}
	netns.Enter()
	flag.Parse()
	flag.Set("test.parallel", "6") // tests mostly wait
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if plainDirectory != "" {
			os.RemoveAll(plainDirectory)
		}
		os.Exit(code)
	}))
}

// config is what a launcher is told.
type config struct {
	Name, Root  string
	Command     []string
	Listen      []string
	Probes      []string
	Start       time.Duration
	StopDelay   time.Duration
	StopSignal  syscall.Signal
	Drain       time.Duration
	Hold        time.Duration
	Restart     string
	Adopt       int
	SteeringOff bool
	PartingOff  bool
	Reuse       string
	NoGetfd     bool // pidfd_getfd is refused, as in Docker's containers
	NoTrace     bool // ptrace is refused
	FewCaps     bool // no more capabilities than those
}

// launch is the main function of a launcher.
func launch(path string) int {
	var c config
	if err := read(path, &c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 99
	}
	if c.FewCaps && os.Getenv(envFewCaps) == "" {
		fmt.Fprintln(os.Stderr, execFewCaps(path))
		return 99
	}
	if c.SteeringOff {
		reuse.Unsteered()
	}
	for number, refused := range map[uint32]bool{unix.SYS_PIDFD_GETFD: c.NoGetfd, unix.SYS_PTRACE: c.NoTrace} {
		if !refused {
			continue
		}
		if err := refuse(number); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 99
		}
	}
	trial.Step = func(name string) { pauseAt(c.Root, name) }
	trial.PartingOff = c.PartingOff
	o := launcher.Options{Name: c.Name, StateDir: c.Root, Command: c.Command, Dir: c.Root, Adopt: c.Adopt,
		Settings: launcher.Settings{Listen: c.Listen, Health: c.Probes, StartTimeout: c.Start, StopDelay: c.StopDelay, StopSignal: c.StopSignal,
			DrainTimeout: c.Drain, Hold: c.Hold, Restart: c.Restart, Reuse: c.Reuse},
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	err := launcher.Run(context.Background(), o)
	var exit *launcher.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		fmt.Fprintln(os.Stderr, "launcher:", err)
		return exit.Code
	}
	fmt.Fprintln(os.Stderr, "launcher: an error without a code:", err)
	return 98
}

// pauseAt stops a launcher at the step that the file "pause" names, once, and says so by the
// file "paused". The file "go" lets it go on.
func pauseAt(root, step string) {
	name, err := os.ReadFile(filepath.Join(root, "pause"))
	if err != nil || string(name) != step {
		return
	}
	if os.Rename(filepath.Join(root, "pause"), filepath.Join(root, "paused")) != nil {
		return
	}
	for {
		if _, err := os.Stat(filepath.Join(root, "go")); err == nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func read(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

func write(t testing.TB, path string, value any) {
	t.Helper()
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, data)
}

// writeFile never shows half of a file.
func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

// service is a service of launched programs.
type service struct {
	t    testing.TB
	c    config
	root string
	uid  int // of the launchers; -1 is the tests' own
	exe  string
	dir  *state.Dir
	runs []*run
	// calm has fewer clients that take more time: enough to notice a failure.
	calm bool
	// out is a file, not a pipe: a process's end does not wait for those that it started.
	out *os.File
}

// run is a launcher that a test started.
type run struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// makeRoot makes a state directory: a test's on the disk, whatever may run there, a benchmark's in
// memory, as a service has it.
func makeRoot(t testing.TB) (string, error) {
	if _, ok := t.(*testing.B); ok {
		return state.MkdirTemp("overlap")
	}
	return os.MkdirTemp("", "overlap")
}

func newService(t testing.TB) *service {
	t.Helper()
	root, err := makeRoot(t)
	if err != nil {
		t.Fatal(err)
	}
	s := &service{t: t, root: root, uid: -1, c: config{Name: "web", Root: root, Start: 60 * time.Second,
		// A program without a shutdown of its own cuts what takes longer on a busy machine.
		StopDelay: 4 * time.Second, Drain: 20 * time.Second, Hold: 60 * time.Second}}
	if s.exe, err = os.Executable(); err != nil {
		t.Fatal(err)
	}
	if s.out, err = os.OpenFile(filepath.Join(root, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.clean)
	return s
}

// open makes the state directory readable for the test.
func (s *service) open() *state.Dir {
	s.t.Helper()
	if s.dir == nil {
		dir, err := state.Open(s.root, s.c.Name)
		if err != nil {
			s.t.Fatal(err)
		}
		s.dir = dir
	}
	return s.dir
}

// as has the launchers run as another user, which needs a copy of the executable that it can
// read.
func (s *service) as(uid int) {
	s.t.Helper()
	s.uid = uid
	data, err := os.ReadFile(s.exe)
	if err != nil {
		s.t.Fatal(err)
	}
	s.exe = filepath.Join(s.root, "overlap")
	if err := os.WriteFile(s.exe, data, 0o755); err != nil {
		s.t.Fatal(err)
	}
	for _, path := range []string{s.root, filepath.Join(s.root, "log")} {
		if err := os.Chown(path, uid, uid); err != nil {
			s.t.Fatal(err)
		}
	}
}

// start starts a launcher.
func (s *service) start(change ...func(*config)) *run {
	s.t.Helper()
	c := s.c
	for _, f := range change {
		f(&c)
	}
	file := filepath.Join(s.root, fmt.Sprintf("launcher%d.json", len(s.runs)))
	write(s.t, file, c)
	cmd := exec.Command(s.exe)
	// The race detector would make each exit a second longer.
	cmd.Env = append(os.Environ(), envLauncher+"="+file, envRoot+"="+s.root,
		"GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=20")
	cmd.Stdout, cmd.Stderr = s.out, s.out
	if s.uid >= 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(s.uid), Gid: uint32(s.uid)}}
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	r := &run{cmd: cmd, done: make(chan struct{})}
	go func() { cmd.Wait(); close(r.done) }()
	s.runs = append(s.runs, r)
	return r
}

// code waits for a launcher's end and returns its exit code, -1 after a signal.
func (s *service) code(r *run) int {
	s.t.Helper()
	select {
	case <-r.done:
		return r.cmd.ProcessState.ExitCode()
	case <-time.After(60 * time.Second):
		s.t.Fatalf("the launcher did not end\n%s", s.output())
		return -1
	}
}

func (r *run) kill() {
	r.cmd.Process.Kill()
	<-r.done
}

// clean ends every process of the service, by its pid, and shows what was logged when the test
// failed.
func (s *service) clean() {
	for _, r := range s.runs {
		r.cmd.Process.Signal(syscall.SIGTERM)
	}
	for _, r := range s.runs {
		select {
		case <-r.done:
		case <-time.After(60 * time.Second):
			s.t.Errorf("launcher %d did not end", r.cmd.Process.Pid)
			r.kill()
		}
	}
	for _, pid := range s.left() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	eventually(s.t, func() error {
		if pids := s.left(); len(pids) > 0 {
			return fmt.Errorf("processes %v are still there", pids)
		}
		return nil
	})
	if s.dir != nil {
		s.dir.Close()
	}
	defer os.RemoveAll(s.root)
	defer s.out.Close()
	if s.t.Failed() {
		out := s.output()
		if len(out) > 12000 {
			out = "…" + out[len(out)-12000:]
		}
		s.t.Logf("launchers:\n%s", out)
	}
}

// left are the processes of the service that live: those with its directory in the environment
// or as their own.
func (s *service) left() (pids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		env, _ := os.ReadFile(filepath.Join(dir, "environ"))
		cwd, _ := os.Readlink(filepath.Join(dir, "cwd"))
		if slices.Contains(strings.Split(string(env), "\x00"), envRoot+"="+s.root) || cwd == s.root {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (s *service) output() string {
	out, err := os.ReadFile(s.out.Name())
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// said waits until the log has a text.
func (s *service) said(text string) {
	s.t.Helper()
	eventually(s.t, func() error {
		if !strings.Contains(s.output(), text) {
			return fmt.Errorf("%q was not said:\n%s", text, s.output())
		}
		return nil
	})
}

// records are those of the generations, as far as they can be read now.
func (s *service) records() []state.Record {
	s.t.Helper()
	if s.uid >= 0 {
		return s.foreignRecords()
	}
	records, _ := s.open().Generations()
	return records
}

// foreignRecords reads the records of another user, which the directory itself refuses.
func (s *service) foreignRecords() (all []state.Record) {
	files, _ := filepath.Glob(filepath.Join(s.root, s.c.Name, "*.json"))
	for _, file := range files {
		var r state.Record
		if read(file, &r) == nil {
			all = append(all, r)
		}
	}
	return all
}

func (s *service) socket(generation int) string {
	if s.uid >= 0 {
		return filepath.Join(s.root, s.c.Name, strconv.Itoa(generation)+".sock")
	}
	return s.open().SocketPath(generation)
}

// serving waits until a generation newer than after serves, and returns its record.
func (s *service) serving(after int) (found state.Record) {
	s.t.Helper()
	eventually(s.t, func() error {
		for _, r := range s.records() {
			if r.State == state.Serving && r.Generation > after && r.Owner.Alive() {
				found = r
				return nil
			}
		}
		return fmt.Errorf("no generation after %d serves\n%s", after, s.output())
	})
	return found
}

// alone waits until one generation and no other is left.
func (s *service) alone() (r state.Record) {
	s.t.Helper()
	eventually(s.t, func() error {
		records := s.records()
		if len(records) != 1 || records[0].State != state.Serving {
			return fmt.Errorf("generations %+v, want one that serves\n%s", records, s.output())
		}
		r = records[0]
		return nil
	})
	return r
}

// tryReload asks the generation that serves for the next one.
func (s *service) tryReload(req control.ReloadRequest) control.Outcome {
	s.t.Helper()
	r := s.serving(0)
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	out, err := control.Dial(s.socket(r.Generation)).Reload(ctx, req, nil)
	if err != nil {
		s.t.Fatalf("reload of generation %d: %v\n%s", r.Generation, err, s.output())
	}
	return out
}

func (s *service) reload() control.Outcome {
	s.t.Helper()
	out := s.tryReload(control.ReloadRequest{})
	if out.Outcome != control.OutcomeSwitched {
		s.t.Fatalf("reload: %+v\n%s", out, s.output())
	}
	return out
}

// mustFail reloads and returns why the new generation failed.
func (s *service) mustFail(req control.ReloadRequest) string {
	s.t.Helper()
	out := s.tryReload(req)
	if out.Outcome == control.OutcomeSwitched || out.Reason == "" {
		s.t.Fatalf("reload: %+v, want a failure with a reason\n%s", out, s.output())
	}
	return out.Reason
}

// overlap runs a command of the service and returns its exit code and what it said.
func (s *service) overlap(args ...string) (int, string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.exe, append([]string{"overlap", "--state-dir", s.root}, args...)...)
	cmd.Env = append(os.Environ(), "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=20")
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		s.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// get makes one request with a connection of its own.
func get(addr, path string) (*http.Response, string, error) {
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr, Timeout: 60 * time.Second}).Get("http://" + addr + path)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

// ask returns the generation that answers.
func ask(addr string) (int, error) {
	resp, _, err := get(addr, "/")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(resp.Header.Get("Overlap-Generation"))
}

func (s *service) mustAsk(addr string, want int) {
	s.t.Helper()
	if n, err := ask(addr); err != nil || n != want {
		s.t.Fatalf("generation %d answered at %s, %v; want %d\n%s", n, addr, err, want, s.output())
	}
}

// given are the addresses that free returned: the kernel gives a port again that nobody has at the
// moment, though a test that runs at the same time is about to.
var given sync.Map

// free is a free port of an address, "127.0.0.1", and no other test's.
func free(t testing.TB, network, host string) string {
	t.Helper()
	for {
		addr := unused(t, network, host)
		if _, taken := given.LoadOrStore(network+addr, true); !taken {
			return addr
		}
	}
}

func unused(t testing.TB, network, host string) string {
	t.Helper()
	if network == "udp" {
		pc, err := net.ListenPacket(network, net.JoinHostPort(host, "0"))
		if err != nil {
			t.Skipf("no %s on %s here: %v", network, host, err)
		}
		defer pc.Close()
		return pc.LocalAddr().String()
	}
	ln, err := net.Listen(network, net.JoinHostPort(host, "0"))
	if err != nil {
		t.Skipf("no %s on %s here: %v", network, host, err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// local is an address to connect to.
func local(t testing.TB, addr string) string {
	t.Helper()
	a, err := reuse.ParseAddress(context.Background(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return a.Local().String()
}

// eventually waits until f returns nil.
func eventually(t testing.TB, f func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// missing skips a test that lacks something, and fails it where everything must be there.
func missing(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("OVERLAP_TEST_REQUIRE") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// tool finds a program that a Debian package has.
func tool(t testing.TB, name, pkg string) string {
	t.Helper()
	for _, dir := range []string{"/usr/bin", "/usr/sbin"} {
		if path := filepath.Join(dir, name); executable(path) {
			return path
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		missing(t, fmt.Sprintf("%s is missing: apt-get install %s", name, pkg))
	}
	return path
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&0o111 != 0
}

func alive(id *process.Identity) bool { return id != nil && id.Alive() }
