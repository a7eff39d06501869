package test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"overlap/lifecycle/bench"
	"overlap/lifecycle/control"
	"overlap/lifecycle/state"
)

// place is where one Go test has its services: a directory with their state and what they say.
type place struct {
	t   testing.TB
	dir string
	all *started
}

// newPlace's processes are ended with the test, those that they started too.
func newPlace(t testing.TB) *place {
	t.Helper()
	// Not t.TempDir: its path is too long for a unix socket, and others may have to enter.
	dir, err := os.MkdirTemp("", "overlap")
	if err != nil {
		t.Fatal(err)
	}
	p := &place{t: t, dir: dir, all: &started{all: map[string]*background{}}}
	t.Cleanup(func() {
		if t.Failed() {
			p.t.Logf("what was said: %s", p.said())
		}
		p.all.end(dir)
		os.RemoveAll(dir)
	})
	return p
}

func (p *place) env() []string {
	return append(os.Environ(), "OVERLAP_STATE_DIR="+filepath.Join(p.dir, "state"),
		"GORACE=atexit_sleep_ms=20 "+os.Getenv("GORACE"))
}

// start starts a process in the background.
func (p *place) start(name string, words ...string) *background {
	p.t.Helper()
	out, err := os.Create(filepath.Join(p.dir, name+".log"))
	if err != nil {
		p.t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Args[0] = words[0]
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = p.dir, p.env(), out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	return p.follow(name, cmd)
}

// follow waits for the end of a process that was started.
func (p *place) follow(name string, cmd *exec.Cmd) *background {
	b := &background{cmd: cmd, done: make(chan struct{})}
	go func() { b.err = cmd.Wait(); close(b.done) }()
	p.all.mu.Lock()
	defer p.all.mu.Unlock()
	p.all.all[name] = b
	return b
}

// run runs a command to its end.
func (p *place) run(words ...string) (string, error) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Args[0] = words[0]
	cmd.Dir, cmd.Env = p.dir, p.env()
	cmd.WaitDelay = time.Second // what it started may hold its output
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (p *place) must(words ...string) string {
	p.t.Helper()
	out, err := p.run(words...)
	if err != nil {
		p.t.Fatalf("%s: %v\n%s", strings.Join(words, " "), err, out)
	}
	return out
}

// ends waits until a process has ended.
func (p *place) ends(b *background, code int) {
	p.t.Helper()
	select {
	case <-b.done:
	case <-time.After(patience):
		p.t.Fatalf("%s still runs", b.cmd)
	}
	if got := b.cmd.ProcessState.ExitCode(); got != code {
		p.t.Fatalf("%s ended with %v, want %d", b.cmd, b.cmd.ProcessState, code)
	}
}

// serves waits until one generation of the service serves alone, after a given one.
func (p *place) serves(name string, after int) (number int) {
	p.t.Helper()
	p.until("wait until "+name+" serves", func() error {
		dir, err := state.Find(filepath.Join(p.dir, "state"), name)
		if err != nil {
			return err
		}
		defer dir.Close()
		records, _ := dir.Generations()
		if len(records) != 1 || records[0].Generation <= after {
			return fmt.Errorf("records %+v", records)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		s, err := control.Dial(dir.SocketPath(records[0].Generation)).Status(ctx)
		if err != nil {
			return err
		}
		if len(s.Generations) != 1 || s.Generations[0].State != state.Serving {
			return fmt.Errorf("%+v", s)
		}
		number = s.Generations[0].Generation
		return nil
	})
	return number
}

// until waits until is returns no error.
func (p *place) until(what string, is func() error) {
	p.t.Helper()
	until(p.t, what, is)
}

func until(t testing.TB, what string, is func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if err = is(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// said is everything that the processes have said.
func (p *place) said() string {
	var all bytes.Buffer
	paths, _ := filepath.Glob(filepath.Join(p.dir, "*.log"))
	for _, path := range paths {
		data, _ := os.ReadFile(path)
		fmt.Fprintf(&all, "\n%s:\n%s", filepath.Base(path), data)
	}
	return all.String()
}

func (p *place) write(name, text string) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// under puts clients with a connection for each request on an address while f runs, and fails
// the test for a request that failed.
func under(t testing.TB, addr string, f func()) *bench.Result {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var result *bench.Result
	var failed error
	done, enough := make(chan struct{}), make(chan struct{})
	var once sync.Once
	go func() {
		defer close(done)
		l := bench.Load{Address: addr, Clients: 16, Mode: bench.Close, Think: 2 * time.Millisecond, Timeout: 2 * patience,
			Progress: func(s bench.Snapshot) {
				if s.Requests >= 200 {
					once.Do(func() { close(enough) })
				}
			}}
		result, failed = l.Run(ctx, nil)
	}()
	func() {
		defer func() { stop(); <-done }()
		f()
		select {
		case <-enough:
		case <-done:
		}
	}()
	if failed != nil {
		t.Fatal(failed)
	}
	t.Logf("%d requests, %d failed %v, %d delayed", result.Requests, result.Failed, result.ByCause, result.Delayed)
	for i, f := range result.Failures {
		if i < 5 {
			t.Logf("%s after %s: %s", f.Cause, f.Took, f.Error)
		}
	}
	if result.Failed > 0 {
		t.Errorf("%d of %d requests failed", result.Failed, result.Requests)
	}
	return result
}

// freePort is a port of no one's, outside the range from which the kernel gives clients theirs.
func freePort(t testing.TB) string {
	t.Helper()
	port, err := findPort()
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(port)
}

// lacking skips a test that lacks something, and fails it where everything must be there.
func lacking(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("OVERLAP_TEST_REQUIRE") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// tool finds a program of the distribution's.
func tool(t testing.TB, name, pkg string) string {
	t.Helper()
	for _, dir := range []string{"/usr/bin", "/usr/sbin"} {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		lacking(t, "%s is missing: apt-get install %s", name, pkg)
	}
	return path
}

// answer asks for the process that answers, with a connection of its own.
func answer(port string) (string, error) {
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: patience}).Get("http://127.0.0.1:" + port + "/pid")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}
