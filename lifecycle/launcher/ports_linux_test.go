package launcher_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	reuseport "github.com/libp2p/go-reuseport"
	"golang.org/x/sys/unix"

	"overlap/lifecycle/control"
)

// What a program does with ports beside its own goes as it goes without a launcher. What the program of these tests
// does with them: see ports.

// TestFixedSourcePort: a client's connection from a port of its choice, which never listens: it is
// made, while the program starts as well, and no reload waits for that port.
func TestFixedSourcePort(t *testing.T) {
	reached(t, func(t *testing.T, s *service) {
		addr, from := free(t, "tcp", "127.0.0.1"), free(t, "tcp", "127.0.0.1")
		there, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer there.Close()
		s.goProgram(programConfig{Kind: "polite", Listen: []string{addr}, From: free(t, "tcp", "127.0.0.1"), To: there.Addr().String()})
		s.start()
		for n := range 3 {
			g := s.serving(n)
			if _, body, err := get(addr, "/from/"+from); err != nil || body != "connected\n" {
				t.Fatalf("from a fixed port: %q, %v", body, err)
			}
			if len(g.Listeners) != 1 {
				t.Errorf("listeners %+v", g.Listeners)
			}
			if out := s.tryReload(control.ReloadRequest{Timeout: 10 * time.Second}); out.Outcome != control.OutcomeSwitched {
				t.Fatalf("%+v", out)
			}
		}
	})
}

// TestTakenPort: a program that looks for a free port does not find its own.
func TestTakenPort(t *testing.T) {
	reached(t, func(t *testing.T, s *service) {
		addr := free(t, "tcp", "127.0.0.1")
		s.goProgram(programConfig{Kind: "polite", Listen: []string{addr}})
		s.start()
		s.serving(0)
		s.reload()
		for _, want := range []string{"EADDRINUSE", "EADDRINUSE"} { // and it stays so
			if _, body, err := get(addr, "/listen/"+addr); err != nil || !strings.HasPrefix(body, want) {
				t.Errorf("a second bind: %q, %v", body, err)
			}
		}
		s.mustAsk(addr, s.alone().Generation)
	})
}

// TestPortOpenedWhileServing: its first client does not wait for the launcher. Where its socket can't be reached, one
// does that meets the microseconds between the placeholder's listen and the program that steers around it.
func TestPortOpenedWhileServing(t *testing.T) {
	reached(t, func(t *testing.T, s *service) {
		addr := free(t, "tcp", "127.0.0.1")
		s.goProgram(programConfig{Kind: "polite", Listen: []string{addr}})
		s.start()
		s.serving(0)
		waited := 0
		for range 20 {
			later := free(t, "tcp", "127.0.0.1")
			if _, body, err := get(addr, "/listen/"+later); err != nil || body != "listens\n" {
				t.Fatalf("%q, %v", body, err)
			}
			again, err := dialed(later)
			if err != nil {
				t.Errorf("the first client of a new port: %v", err)
			}
			if again {
				waited++
			}
			eventually(t, func() error {
				for _, l := range s.serving(0).Listeners {
					if l.Address == later {
						return nil
					}
				}
				return fmt.Errorf("%s is not the generation's", later)
			})
			if again, err := dialed(later); err != nil || again {
				t.Errorf("a client of a new port: %v; its SYN was sent again: %v", err, again)
			}
			if _, body, err := get(addr, "/close/"+later); err != nil || body != "closed\n" {
				t.Fatalf("%q, %v", body, err)
			}
		}
		if waited > 5 || waited > 0 && !s.c.NoGetfd {
			t.Errorf("%d of 20 first clients had to send their SYN again", waited)
		}
	})
}

// TestPortOpenedWhileDraining: a port that an old program opens while it drains remains the new one's, which has opened it.
func TestPortOpenedWhileDraining(t *testing.T) {
	reached(t, func(t *testing.T, s *service) {
		addr, later := free(t, "tcp", "127.0.0.1"), free(t, "tcp", "127.0.0.1")
		s.goProgram(programConfig{Kind: "polite", Listen: []string{addr}})
		s.start()
		s.serving(0)
		kept := &http.Client{Transport: &http.Transport{}}
		defer kept.CloseIdleConnections()
		old := func(path string) {
			t.Helper()
			resp, err := kept.Get("http://" + addr + path)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			t.Logf("the old program: %s", body)
		}
		old("/")
		g := s.reload()
		if _, body, err := get(addr, "/listen/"+later); err != nil || body != "listens\n" {
			t.Fatalf("%q, %v", body, err)
		}
		eventually(t, func() error {
			for _, r := range s.records() {
				if r.Generation == g.To && len(r.Listeners) == 2 {
					return nil
				}
			}
			return errors.New("the new port is not the generation's")
		})
		old("/listen/" + later)
		s.alone()
		for range 10 {
			if again, err := dialed(later); err != nil || again {
				t.Errorf("a client of the port: %v; its SYN was sent again: %v", err, again)
			}
		}
	})
}

// TestStrangersPortWhileServing: a port of somebody else's that is shared is not joined.
func TestStrangersPortWhileServing(t *testing.T) {
	reached(t, func(t *testing.T, s *service) {
		addr := free(t, "tcp", "127.0.0.1")
		stranger, err := reuseport.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer stranger.Close()
		s.goProgram(programConfig{Kind: "polite", Listen: []string{addr}})
		s.start()
		s.serving(0)
		if _, body, err := get(addr, "/listen/"+stranger.Addr().String()); err != nil || body != "EADDRINUSE\n" {
			t.Errorf("%q, %v", body, err)
		}
		s.said("which is not of this service")
	})
}

// TestListensLate: a socket that was bound early and listens when it is looked at no more.
func TestListensLate(t *testing.T) {
	reached(t, func(t *testing.T, s *service) {
		addr, late := free(t, "tcp", "127.0.0.1"), free(t, "tcp", "127.0.0.1")
		s.goProgram(programConfig{Kind: "polite", Listen: []string{addr}})
		s.start()
		s.serving(0)
		if _, body, err := get(addr, "/late/"+late); err != nil || body != "bound\n" {
			t.Fatalf("%q, %v", body, err)
		}
		eventually(t, func() error { _, err := dialed(late); return err })
		eventually(t, func() error {
			if n := len(s.serving(0).Listeners); n != 2 {
				return fmt.Errorf("%d listeners", n)
			}
			return nil
		})
	})
}

// TestBoundEarlyListensLate: the same for one that was bound before the program was ready, and whose address was given up
// meanwhile.
func TestBoundEarlyListensLate(t *testing.T) {
	reached(t, func(t *testing.T, s *service) {
		addr, late := free(t, "tcp", "127.0.0.1"), free(t, "tcp", "127.0.0.1")
		s.goProgram(programConfig{Kind: "polite", Listen: []string{addr}, Late: late})
		s.c.Listen = []string{addr}
		s.start()
		s.serving(0)
		eventually(t, func() error {
			if n := len(s.serving(0).Listeners); n != 2 {
				return fmt.Errorf("%d listeners", n)
			}
			return nil
		})
		if _, err := dialed(late); err != nil {
			t.Error(err)
		}
	})
}

// dialed connects, and says whether the first SYN was lost.
func dialed(addr string) (again bool, err error) {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return false, err
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return false, err
	}
	var info *unix.TCPInfo
	raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	return err == nil && info.Total_retrans > 0, err
}

// TestSaysUnshared: a program that turns SO_REUSEPORT off, which is off, is handed over as any other.
func TestSaysUnshared(t *testing.T) {
	reached(t, func(t *testing.T, s *service) {
		addr := free(t, "tcp", "127.0.0.1")
		s.goProgram(programConfig{Kind: "polite", Option: "unshared", Listen: []string{addr}})
		s.start()
		s.serving(0)
		for range 3 {
			s.mustAsk(addr, s.reload().To)
		}
	})
}

// TestWithinDeclared: of several addresses within what is declared all are waited for that the generation before has.
func TestWithinDeclared(t *testing.T) {
	t.Parallel()
	s := newService(t)
	addr := free(t, "tcp", "127.0.0.1")
	_, port, _ := net.SplitHostPort(addr)
	second := "127.0.0.2:" + port
	s.c.Listen, s.c.StopDelay = []string{":" + port}, 100*time.Millisecond
	s.goProgram(programConfig{Kind: "polite", Listen: []string{addr, second}, Between: 2 * time.Second})
	s.start()
	s.serving(0)
	eventually(t, func() error { _, err := ask(second); return err })
	noLoss(t, s.under(second, func() {
		for range 3 {
			s.reload()
		}
	}).close)
}

// TestTakenDatagrams: nor does it find its own UDP port free right after it has bound it, but where it says that it may be
// bound again.
func TestTakenDatagrams(t *testing.T) {
	for name, refused := range map[string]bool{"fetch": false, "make": true} {
		for _, reuses := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/reuses=%v", name, reuses), func(t *testing.T) {
				t.Parallel()
				s := newService(t)
				s.c.NoGetfd = refused
				addr, datagrams := free(t, "tcp", "127.0.0.1"), free(t, "udp", "127.0.0.1")
				s.c.Listen = []string{addr, "udp:" + datagrams}
				s.goProgram(programConfig{Kind: "polite", Listen: []string{addr}, UDP: []string{datagrams, datagrams}, Reuses: reuses})
				r := s.start()
				if !reuses {
					s.code(r)
					s.said("bind: address already in use")
					return
				}
				s.serving(0)
				s.reload()
				s.alone()
			})
		}
	}
}

// TestComesDuringHandover: a second socket of the program's at an address that it opens while its next version starts gets no
// client until that is over, since the places of the group are the handover's; then it gets its share.
func TestComesDuringHandover(t *testing.T) {
	t.Parallel()
	s, addr, c := polite(t, func(_ *service, c *programConfig) { c.Share, c.Later = true, c.Listen[0] })
	next := c
	next.Fail = "hang"
	s.next(next)
	failed := make(chan string, 1)
	go func() { failed <- s.tryReload(control.ReloadRequest{Timeout: 8 * time.Second}).Reason }()
	s.said("found the serving generation")
	s.openLater(addr)
	eventually(t, func() error { // it is known
		if r := s.serving(0); len(r.Listeners) != 1 || len(r.Listeners[0].Inodes) != 2 {
			return fmt.Errorf("listeners %+v", r.Listeners)
		}
		return nil
	})
	later := 0
	for range 50 {
		later += s.answeredLater(addr)
	}
	select {
	case reason := <-failed:
		t.Logf("the handover was over before it was seen: %s", reason)
		return
	default:
	}
	if later > 0 {
		t.Errorf("%d of 50 clients were the second socket's while the next version started", later)
	}
	if reason := <-failed; !strings.Contains(reason, "healthy") {
		t.Errorf("the reload failed with %q", reason)
	}
	eventually(t, func() error {
		if s.answeredLater(addr) == 0 {
			return errors.New("the second socket gets no client after the handover")
		}
		return nil
	})
}

// openLater has the program open its later address.
func (s *service) openLater(addr string) {
	s.t.Helper()
	if resp, body, err := get(addr, "/later"); err != nil || resp.StatusCode != http.StatusOK {
		s.t.Fatalf("%v, %s", err, body)
	}
}

// answeredLater is 1 where a request came by a socket of the program's later address.
func (s *service) answeredLater(addr string) int {
	s.t.Helper()
	resp, _, err := get(addr, "/")
	if err != nil {
		s.t.Fatal(err)
	}
	if resp.Header.Get("Later") != "" {
		return 1
	}
	return 0
}
