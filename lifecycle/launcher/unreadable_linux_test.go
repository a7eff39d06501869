package launcher_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"overlap/lifecycle/bench"
	"overlap/lifecycle/control"
	"overlap/lifecycle/launcher"
	"overlap/reuse/sockdiag"
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

// TestSteppedDownByItself: and so is one that becomes that user by itself, and whose binds nobody can look at: IPv4, IPv6,
// and IPv6 alone. What it opens while it serves is steered too.
func TestSteppedDownByItself(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may become another user")
	}
	showsBound(t)
	for _, kind := range []string{"polite", "guest"} {
		for _, host := range []string{"127.0.0.1", "::1", "::"} {
			t.Run(kind+"/"+host, func(t *testing.T) {
				t.Parallel()
				s := newService(t)
				s.c.NoGetfd, s.c.FewCaps = true, true
				if err := os.Chmod(s.root, 0o755); err != nil {
					t.Fatal(err)
				}
				addr := unlisted(t, host)
				c := programConfig{Kind: kind, Listen: []string{addr}, User: 65534}
				if kind == "polite" {
					c.Later = unlisted(t, host)
				}
				s.goProgram(c)
				s.lossOver(5, local(t, addr), false)
				if c.Later == "" {
					return
				}
				if resp, body, err := get(local(t, addr), "/later"); err != nil || resp.StatusCode != 200 {
					t.Fatalf("bind late: %v %s", err, body)
				}
				eventually(t, func() error {
					if r := s.alone(); len(r.Listeners) != 2 {
						return fmt.Errorf("listeners %+v, want 2", r.Listeners)
					}
					return nil
				})
				c.Listen = append(c.Listen, c.Later)
				s.next(c)
				noLoss(t, s.under(local(t, c.Later), func() { s.reload() }).close)
			})
		}
	}
}

// showsBound skips the test where the kernel does not show sockets that are bound, which it does from 6.8 on.
func showsBound(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	diag, err := sockdiag.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer diag.Close()
	if bound, err := diag.Bound(sockdiag.FamilyIPv4); err != nil || len(bound) == 0 {
		t.Skipf("the kernel shows no bound sockets (%v): it takes Linux 6.8", err)
	}
}

// unlisted is a free address whose port is not among those that the kernel gives.
func unlisted(t *testing.T, host string) string {
	t.Helper()
	for {
		addr := net.JoinHostPort(host, fmt.Sprint(10000+rand.N(20000)))
		if ln, err := net.Listen("tcp", addr); err == nil {
			ln.Close()
			if _, taken := given.LoadOrStore("tcp"+addr, true); !taken {
				return addr
			}
		}
	}
}

// TestSteppedDownUnseen: where its port is one that the kernel may have given it, it is not taken for a server's. That,
// and what lifts it, is said; to declare it is enough.
func TestSteppedDownUnseen(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may become another user")
	}
	showsBound(t)
	t.Parallel()
	s := newService(t)
	s.c.NoGetfd, s.c.FewCaps, s.c.Start = true, true, 5*time.Second
	addr := free(t, "tcp", "127.0.0.1")
	s.goProgram(programConfig{Kind: "polite", Listen: []string{addr}, User: 65534})
	if code := s.code(s.start()); code != launcher.ExitOwnFailure {
		t.Errorf("exit code %d", code)
	}
	s.said(launcher.ErrUnseen.Error())
	s.said("--listen declares it")
	s.c.Start, s.c.Listen = 0, []string{addr}
	s.loss(addr, false)
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
