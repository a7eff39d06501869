package launcher_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"overlap/reuse"
	"overlap/reuse/sockdiag"
)

// noCopies fails the test where a launcher has a descriptor of the program's sockets: it would keep
// a dead queue in the group.
func (s *service) noCopies() {
	s.t.Helper()
	eventually(s.t, func() error {
		for _, r := range s.runs {
			held, err := sockdiag.Inodes(r.cmd.Process.Pid)
			if err != nil {
				continue // it has ended
			}
			for _, l := range s.serving(0).Listeners {
				for _, ino := range l.Inodes {
					if slices.Contains(held, ino) {
						return fmt.Errorf("the launcher holds socket %d of %s", ino, l.Address)
					}
				}
			}
		}
		return nil
	})
}

// TestFirstIsGated: clients of the first generation wait from its first listen until it is healthy,
// and the second gets none before.
func TestFirstIsGated(t *testing.T) {
	reached(t, func(t *testing.T, s *service) {
		addr := free(t, "tcp", "127.0.0.1")
		s.c.Probes = []string{"/healthz"}
		s.goProgram(programConfig{Kind: "polite", Listen: []string{addr}, Fail: "late"})
		s.start()
		port := netip.MustParseAddrPort(addr).Port()
		eventually(t, func() error { // the placeholder
			there, err := reuse.Sockets("tcp", port)
			if err == nil && len(there) == 0 {
				err = errors.New("nobody listens")
			}
			return err
		})
		var early atomic.Int64
		var clients sync.WaitGroup
		healthy := make(chan struct{})
		for range 8 {
			clients.Go(func() { // impatient ones, so that there is always a new one
				c := http.Client{Timeout: 20 * time.Millisecond, Transport: &http.Transport{DisableKeepAlives: true}}
				for {
					select {
					case <-healthy:
						return
					default:
					}
					resp, err := c.Get("http://" + addr)
					if err == nil {
						if resp.StatusCode != http.StatusOK {
							early.Add(1)
						}
						resp.Body.Close()
					}
				}
			})
		}
		resp, body, err := get(addr, "/")
		close(healthy)
		clients.Wait()
		if err != nil || resp.StatusCode != http.StatusOK || early.Load() > 0 {
			t.Fatalf("%v: %s; %d clients came too early", err, body, early.Load())
		}
		a := s.under(addr, func() { s.reload() })
		noLoss(t, a.close)
	})
}

// TestUndeclaredUDP: a UDP port is shared where it is declared, or the predecessor's; another one, as
// for a random source port, keeps its meaning of EADDRINUSE.
func TestUndeclaredUDP(t *testing.T) {
	reached(t, func(t *testing.T, s *service) {
		addr, declared := free(t, "tcp", "127.0.0.1"), free(t, "udp", "127.0.0.1")
		s.c.Listen = []string{addr, "udp:" + declared}
		s.goProgram(programConfig{Kind: "polite", Listen: []string{addr}, UDP: []string{declared, free(t, "udp", "127.0.0.1"), "127.0.0.1:0"}})
		want := "1 <nil>\n0 <nil>\n0 <nil>\n"
		s.start()
		s.serving(0)
		if _, body, err := get(addr, "/shared"); err != nil || body != want {
			t.Errorf("%v: %q, want %q", err, body, want)
		}
		// Another launcher that declares nothing, and a program without the second port.
		s.next(programConfig{Kind: "polite", Listen: []string{addr}, UDP: []string{declared, free(t, "udp", "127.0.0.1")}})
		s.c.Listen = nil
		s.start()
		s.serving(1)
		want = "1 <nil>\n0 <nil>\n"
		if _, body, err := get(addr, "/shared"); err != nil || body != want {
			t.Errorf("%v: %q, want %q", err, body, want)
		}
		s.alone()
	})
}

// TestStopSignalOutlivesLauncher: whoever ends the program when its launcher is dead knows what it takes for a stop.
func TestStopSignalOutlivesLauncher(t *testing.T) {
	t.Parallel()
	s, addr, c := polite(t, func(s *service, _ *programConfig) { s.c.StopSignal = syscall.SIGINT })
	if r := s.serving(0); r.StopSignal != syscall.SIGINT {
		t.Errorf("the record says %v", r.StopSignal)
	}
	c.Trap = filepath.Join(s.root, "trapped") // of the generations to come
	s.next(c)
	s.reload()
	s.alone()
	s.runs[0].kill()
	s.c.StopSignal = 0
	s.start()
	s.serving(2)
	s.alone()
	s.mustAsk(addr, 3)
	if data, err := os.ReadFile(c.Trap); err != nil || string(data) != "interrupt" {
		t.Errorf("the orphan was stopped with %q, %v", data, err)
	}
}
