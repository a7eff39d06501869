package lifecycle_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"overlap/lifecycle/state"
)

// TestThree: the generation that serves dies while the next one is being started and the one
// before it still listens. That one takes its connections back, and hands them over again.
func TestThree(t *testing.T) {
	t.Parallel()
	s := newService(t, config{Listen: []string{"tcp 127.0.0.1:0"}, DeferAccept: 30, Drain: time.Minute})
	first := s.start()
	s.serving(0)
	// A half-open connection keeps the first generation listening.
	c, err := net.Dial("tcp", s.address(0))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	second := s.start()
	r := s.serving(1)
	gate := filepath.Join(s.c.Root, "gate")
	s.next(func(c *config) { c.DeferAccept = 0; c.WaitFor = gate })
	s.start()
	s.logged("predecessor=2")
	if err := syscall.Kill(second.cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.logged("this one serves again")
	s.mustAsk(1)
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r = s.serving(2); r.Generation != 3 || r.State != state.Serving {
		t.Fatalf("%+v", r)
	}
	s.mustAsk(3)
	c.Write([]byte("GET /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
	b := make([]byte, 4096)
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	if n, err := c.Read(b); err != nil || !strings.Contains(string(b[:n]), "Overlap-Generation: 1") {
		t.Fatalf("the half-open connection got %q, %v", b[:n], err)
	}
	if code := first.code(t); code != 0 {
		t.Errorf("the first generation ended with %d", code)
	}
}

// logged waits until the servers have logged the words.
func (s *service) logged(words string) {
	s.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if strings.Contains(s.output(), words) {
			return
		}
	}
	s.t.Fatalf("%q was never logged\n%s", words, s.output())
}
