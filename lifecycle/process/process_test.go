package process

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The test binary itself is the child: it says "ready" and lives until its standard
// input ends.
func TestMain(m *testing.M) {
	if os.Getenv("PROCESS_TEST_CHILD") != "" {
		os.Stdout.WriteString("ready\n")
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

type child struct {
	*exec.Cmd
	stdin io.WriteCloser
}

// end lets the child exit by itself; it is a zombie then, until reaped.
func (c *child) end() { c.stdin.Close() }

func start(t *testing.T, args ...string) *child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "PROCESS_TEST_CHILD=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("the child did not start: %q, %v", line, err)
	}
	return &child{cmd, stdin}
}

func of(t *testing.T, pid int) Identity {
	t.Helper()
	id, err := Of(pid)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestIdentity(t *testing.T) {
	self, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	if !self.Here() || !self.Alive() {
		t.Errorf("%+v: not here or not alive", self)
	}
	for name, change := range map[string]func(*Identity){
		"start":     func(id *Identity) { id.Start++ },
		"boot":      func(id *Identity) { id.Boot = "another" },
		"namespace": func(id *Identity) { id.Namespace++ },
		"pid":       func(id *Identity) { id.PID = 1 << 30 },
		"zero":      func(id *Identity) { *id = Identity{} },
	} {
		other := self
		change(&other)
		if other.Alive() {
			t.Errorf("alive although the %s differs: %+v", name, other)
		}
		if elsewhere := name == "boot" || name == "namespace"; elsewhere && other.Here() {
			t.Errorf("here although the %s differs", name)
		}
		if _, err := Open(other); err == nil {
			t.Errorf("opened although the %s differs", name)
		}
	}
	raw, err := json.Marshal(self)
	if err != nil {
		t.Fatal(err)
	}
	var back Identity
	if err := json.Unmarshal(raw, &back); err != nil || back != self {
		t.Errorf("%s: read back as %+v, %v", raw, back, err)
	}
}

func TestOfNobody(t *testing.T) {
	for _, pid := range []int{0, -1, 1 << 30} {
		if _, err := Of(pid); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("Of(%d): %v", pid, err)
		}
	}
}

func TestZombieIsNotAlive(t *testing.T) {
	c := start(t)
	id := of(t, c.Process.Pid)
	h, err := Open(id)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if !id.Alive() {
		t.Fatal("a running child is not alive")
	}
	c.end()
	if err := h.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Not reaped yet: the number is taken, the process is gone.
	if id.Alive() {
		t.Error("a zombie is alive")
	}
	if _, err := Open(id); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("open a zombie: %v", err)
	}
	c.Wait()
	if err := h.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal after the end: %v", err)
	}
}

func TestSignalAndWait(t *testing.T) {
	c := start(t)
	h, err := Open(of(t, c.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Signal(0); err != nil {
		t.Fatal(err)
	}

	// A waiter that gives up disturbs no other, before it or after it.
	short, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	results := make(chan error, 3)
	for range 3 {
		wg.Go(func() { results <- h.Wait(t.Context()) })
	}
	gaveUp := make(chan error, 1)
	go func() { gaveUp <- h.Wait(short) }()
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled wait: %v", err)
	}
	if err := h.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	for range 3 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if err := h.Wait(t.Context()); err != nil {
		t.Errorf("wait after the end: %v", err)
	}
}

func TestWaitIsCancelledWhileAlone(t *testing.T) {
	h, err := Open(of(t, start(t).Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		if err := h.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("wait for a process that lives: %v", err)
		}
		cancel()
	}
}

func TestCloseEndsWait(t *testing.T) {
	for _, polling := range []bool{false, true} {
		h, err := Open(of(t, start(t).Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		if polling && h.pidfd != nil {
			h.pidfd.Close()
			h.pidfd = nil
		}
		done := make(chan error, 2)
		for range 2 {
			go func() { done <- h.Wait(t.Context()) }()
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := <-done; !errors.Is(err, os.ErrClosed) {
				t.Errorf("polling %v: wait on a closed handle: %v", polling, err)
			}
		}
		if err := h.Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("second close: %v", err)
		}
		if err := h.Signal(0); !errors.Is(err, os.ErrClosed) {
			t.Errorf("signal after close: %v", err)
		}
	}
}

// What stands in for pidfds where there are none.
func TestPolling(t *testing.T) {
	c := start(t)
	h, err := Open(of(t, c.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if h.pidfd != nil {
		h.pidfd.Close()
		h.pidfd = nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled wait: %v", err)
	}
	if err := h.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := h.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if err := h.Signal(syscall.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal after the end: %v", err)
	}
}

func TestCommand(t *testing.T) {
	c := start(t, "one two", "three\x1b[31m")
	got := Command(c.Process.Pid)
	if !strings.HasSuffix(got, " one two three?[31m") {
		t.Errorf("Command: %q", got)
	}
	if got := Command(1 << 30); got != "" {
		t.Errorf("Command of nobody: %q", got)
	}
}
