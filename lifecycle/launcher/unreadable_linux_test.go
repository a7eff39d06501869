package launcher_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"overlap/lifecycle/bench"
	"overlap/lifecycle/control"
	"overlap/lifecycle/launcher"
)

// TestUnreadable: requests under way in a program that became another user once it listened, under a root without ptrace
// access as in a container, have the stop delay as well. Nobody sees whose connections are whose there.
func TestUnreadable(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may become another user")
	}
	t.Parallel()
	s := newService(t)
	s.c.NoGetfd, s.c.FewCaps, s.c.StopDelay = true, true, 2*time.Second
	addr := free(t, "tcp", "127.0.0.1")
	s.goProgram(programConfig{Kind: "plain", Listen: []string{addr}, Then: 65534})
	s.start()
	s.serving(0)
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s.counts(1)
	c.Close()
	s.counts(0)
	r := slowly(t, addr, func() {
		for range 3 {
			s.drained()
		}
	})
	noLoss(t, r)
	s.alone()
	s.counts(0)
}

// TestSteppedDown: a program that is another user's before it binds is handed over without ptrace access too, where it
// was executed as that user.
func TestSteppedDown(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may become another user")
	}
	t.Parallel()
	for _, kind := range []string{"polite", "udp"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			s.c.NoGetfd, s.c.FewCaps, s.c.Start = true, true, 10*time.Second
			if err := os.Chmod(s.root, 0o755); err != nil {
				t.Fatal(err)
			}
			c := programConfig{Kind: kind, User: 65534, Anew: true}
			if kind == "udp" {
				lossUDP(t, s, c)
				return
			}
			addr := free(t, "tcp", "127.0.0.1")
			c.Listen = []string{addr}
			s.goProgram(c)
			s.loss(addr, false)
		})
	}
}

// TestSteppedDownUnseen: one that becomes another user by itself can't be seen to bind. That, and what lifts it, is said.
func TestSteppedDownUnseen(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may become another user")
	}
	t.Parallel()
	s := newService(t)
	s.c.NoGetfd, s.c.FewCaps, s.c.Start = true, true, 2*time.Second
	s.goProgram(programConfig{Kind: "polite", Listen: []string{free(t, "tcp", "127.0.0.1")}, User: 65534})
	if code := s.code(s.start()); code != launcher.ExitOwnFailure {
		t.Errorf("exit code %d", code)
	}
	s.said(launcher.ErrUnseen.Error())
}

// slowly calls f under clients with a connection for each request, which takes 0.2 s, and returns what they noticed.
func slowly(t *testing.T, addr string, f func()) *bench.Result {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	results := make(chan *bench.Result, 1)
	go func() {
		l := bench.Load{Address: addr, Clients: 20, Mode: bench.Close, Path: "/slow", Timeout: waitFor}
		r, err := l.Run(ctx, nil)
		if err != nil {
			t.Error(err)
		}
		results <- r
	}()
	f()
	stop()
	return <-results
}

// counts waits until the generation that serves has so many connections.
func (s *service) counts(want int) {
	s.t.Helper()
	eventually(s.t, func() error {
		status, err := control.Dial(s.socket(s.serving(0).Generation)).Status(context.Background())
		if err != nil {
			return err
		}
		if got := status.Generations[0].Connections; got != want {
			return fmt.Errorf("%d connections, want %d", got, want)
		}
		return nil
	})
}

// drained reloads, and returns when the old generation is over.
func (s *service) drained() {
	s.t.Helper()
	if out := s.tryReload(control.ReloadRequest{Wait: control.WaitDrained}); out.Outcome != control.OutcomeSwitched {
		s.t.Errorf("%+v", out)
	}
}
