package launcher_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"overlap/lifecycle/control"
	"overlap/lifecycle/launcher"
	"overlap/reuse"
)

// polite starts a service of a Go program with a graceful shutdown and returns its address.
func polite(t testing.TB, change ...func(*service, *programConfig)) (*service, string, programConfig) {
	t.Helper()
	s := newService(t)
	s.calm, s.c.StopDelay = true, 300*time.Millisecond
	addr := free(t, "tcp", "127.0.0.1")
	c := programConfig{Kind: "polite", Listen: []string{addr}, Drains: true} // clients may be slow on a busy machine
	s.c.Probes = []string{"/healthz"}
	for _, f := range change {
		f(s, &c)
	}
	s.goProgram(c)
	s.start()
	s.serving(0)
	return s, addr, c
}

// TestFailures: a new version that fails changes nothing for clients, says why and leaves
// nothing; and the next reload works.
func TestFailures(t *testing.T) {
	notExecutable := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(notExecutable, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct {
		name   string
		next   func(*programConfig)
		req    control.ReloadRequest
		reason string
	}{
		{"unhealthy", func(c *programConfig) { c.Fail = "unhealthy" }, control.ReloadRequest{Timeout: 5 * time.Second}, "503"},
		{"crash early", func(c *programConfig) { c.Fail = "crash early" }, control.ReloadRequest{}, "exit status 7"},
		{"crash in check", func(c *programConfig) { c.Fail = "crash in check" }, control.ReloadRequest{}, "exit status 8"},
		{"hang", func(c *programConfig) { c.Fail = "hang" }, control.ReloadRequest{Timeout: 5 * time.Second}, "healthy"},
		{"never listens", func(c *programConfig) { c.Fail = "never" }, control.ReloadRequest{Timeout: 5 * time.Second}, "does not listen"},
		{"missing command", func(*programConfig) {}, control.ReloadRequest{Command: []string{"/nowhere/at-all"}}, "no such file"},
		{"not executable", func(*programConfig) {}, control.ReloadRequest{Command: []string{notExecutable}}, "permission denied"},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			s, addr, c := polite(t)
			before := s.alone()
			n := c
			f.next(&n)
			s.next(n)
			a := s.under(addr, func() {
				reason := s.mustFail(f.req)
				t.Logf("reason: %s", reason)
				if !strings.Contains(reason, f.reason) {
					t.Errorf("reason %q, want something of %q", reason, f.reason)
				}
			})
			noLoss(t, a.close)
			noLoss(t, a.keepAlive)
			for _, g := range append(a.close.ByGeneration, a.keepAlive.ByGeneration...) {
				if g.Generation != fmt.Sprint(before.Generation) {
					t.Errorf("generation %q answered %d requests", g.Generation, g.Requests)
				}
			}
			if after := s.alone(); after.Generation != before.Generation || !alive(after.Program) {
				t.Errorf("generation %d is left, want %d alive", after.Generation, before.Generation)
			}
			eventually(t, func() error {
				if n := len(s.left()); n != 2 {
					return fmt.Errorf("%d processes, want the launcher and its program", n)
				}
				return nil
			})
			s.next(c)
			s.mustAsk(addr, s.reload().To)
		})
	}
}

// TestFirstFails: a first generation that fails ends the launcher with a code that tells why.
func TestFirstFails(t *testing.T) {
	for _, f := range []struct {
		name string
		fail string
		cmd  func(dir string) []string
		code int
		says string
	}{
		{"crash", "crash early", nil, 7, "exit status 7"},
		{"crash in check", "crash in check", nil, 8, "exit status 8"},
		{"unhealthy", "unhealthy", nil, 1, "503"},
		{"never listens", "never", nil, 1, "does not listen on any address"},
		{"missing", "", func(string) []string { return []string{"there-is-no-such-command"} }, launcher.ExitNotFound, "not found"},
		{"missing path", "", func(string) []string { return []string{"/nowhere/at-all"} }, launcher.ExitNotFound, "no such file"},
		{"not executable", "", func(dir string) []string {
			os.WriteFile(dir+"/file", nil, 0o644)
			return []string{dir + "/file"}
		}, launcher.ExitNotExecutable, "permission denied"},
		{"no format", "", func(dir string) []string {
			os.WriteFile(dir+"/file", []byte{0x7f, 1, 2, 3}, 0o755)
			return []string{dir + "/file"}
		}, launcher.ExitNotExecutable, "exec format error"},
		{"no command", "", func(string) []string { return nil }, launcher.ExitOwnFailure, "no command"},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			s.c.Probes = []string{"/healthz"}
			if f.code == 1 {
				s.c.Start = 5 * time.Second
			}
			s.goProgram(programConfig{Kind: "plain", Listen: []string{free(t, "tcp", "127.0.0.1")}, Fail: f.fail})
			if f.cmd != nil {
				s.c.Command = f.cmd(s.root)
			}
			if code := s.code(s.start()); code != f.code {
				t.Errorf("exit code %d, want %d", code, f.code)
			}
			if out := s.output(); !strings.Contains(out, f.says) {
				t.Errorf("%q was not said", f.says)
			}
			if n := len(lines(s.output(), "out of luck")); n > 1 {
				t.Errorf("it was started %d times", n)
			}
			if left := s.left(); len(left) > 0 {
				t.Errorf("processes %v are left", left)
			}
			if records := s.records(); len(records) > 0 {
				t.Errorf("records %+v are left", records)
			}
		})
	}
}

// TestStranger: a port of somebody else's is refused, with his name.
func TestStranger(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s := newService(t)
	s.goProgram(programConfig{Kind: "plain", Listen: []string{ln.Addr().String()}})
	if code := s.code(s.start()); code != launcher.ExitOwnFailure {
		t.Errorf("exit code %d, want %d: the program did not fail by itself", code, launcher.ExitOwnFailure)
	}
	out := s.output()
	if !strings.Contains(out, fmt.Sprintf("pid %d", os.Getpid())) && !strings.Contains(out, fmt.Sprint(os.Getpid())) {
		t.Errorf("pid %d is not named", os.Getpid())
	}
	if !strings.Contains(out, "address already in use") {
		t.Error("the program was not told")
	}
}

// TestBackground: a program that forks and exits is followed, once and twice.
func TestBackground(t *testing.T) {
	for _, twice := range []bool{false, true} {
		t.Run(fmt.Sprintf("twice=%v", twice), func(t *testing.T) { testBackground(t, twice) })
	}
}

// TestParentLeaves: clients reach a program whose first process has listened and ends while it is switched to.
func TestParentLeaves(t *testing.T) {
	t.Parallel()
	s, addr, _ := polite(t, func(_ *service, c *programConfig) { c.Leaves = true })
	a := s.under(addr, func() {
		for range 25 {
			s.reload()
		}
	})
	noLoss(t, a.close)
	if a.close.Delayed > 0 {
		t.Errorf("%d requests were delayed", a.close.Delayed)
	}
}

// TestFamilies: a program that listens on a wildcard and, because the port is shared, on all of the other
// family too, or on one of its addresses beside, is handed over with all of them.
func TestFamilies(t *testing.T) {
	for _, c := range []struct {
		listen   []string
		families bool
		reached  []string
	}{
		{[]string{"0.0.0.0"}, true, []string{"::1", "127.0.0.1"}},
		{[]string{"0.0.0.0", "127.0.0.1"}, true, []string{"127.0.0.1", "127.0.0.2", "::1"}},
		{[]string{"127.0.0.1", "0.0.0.0"}, true, []string{"127.0.0.2", "127.0.0.1", "::1"}},
		{[]string{"::", "::1"}, false, []string{"::1", "127.0.0.1"}},
	} {
		t.Run(strings.Join(c.listen, " and "), func(t *testing.T) {
			t.Parallel()
			port := ""
			s, _, _ := polite(t, func(_ *service, p *programConfig) {
				_, port, _ = net.SplitHostPort(p.Listen[0])
				p.Listen, p.Families = nil, c.families
				for _, host := range c.listen {
					p.Listen = append(p.Listen, net.JoinHostPort(host, port))
				}
			})
			for _, host := range c.reached { // what comes a moment after the first, by which the program is ready
				s.mustAsk(net.JoinHostPort(host, port), 1)
			}
			a := s.under(net.JoinHostPort(c.reached[0], port), func() {
				for range 5 {
					g := s.reload().To
					for _, host := range c.reached {
						s.mustAsk(net.JoinHostPort(host, port), g)
					}
				}
			})
			noLoss(t, a.close)
			if a.close.Delayed > 0 {
				t.Errorf("%d requests were delayed", a.close.Delayed)
			}
		})
	}
}

func testBackground(t *testing.T, twice bool) {
	t.Parallel()
	s, addr, _ := polite(t, func(_ *service, c *programConfig) { c.Daemon, c.Twice = true, twice })
	a := s.under(addr, func() {
		for range 3 {
			s.reload()
		}
	})
	noLoss(t, a.close)
	say(t, a.keepAlive)
	last := s.alone()
	eventually(t, func() error {
		if n := len(s.left()); n != 2 {
			return fmt.Errorf("%d processes, want the launcher and its program", n)
		}
		return nil
	})
	s.mustAsk(addr, last.Generation)
	// It is started again, as any other.
	if _, _, err := get(addr, "/crash"); err == nil {
		t.Error("the program did not crash")
	}
	s.serving(last.Generation)
	s.runs[0].cmd.Process.Signal(syscall.SIGTERM)
	if code := s.code(s.runs[0]); code != 0 {
		t.Errorf("exit code %d after a stop", code)
	}
	if left := s.left(); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
}

// TestStubborn: a program that ignores the stop signal is killed at the drain time-out, after
// a reload and after a stop.
func TestStubborn(t *testing.T) {
	for _, daemon := range []bool{false, true} {
		t.Run(fmt.Sprintf("daemon=%v", daemon), func(t *testing.T) {
			t.Parallel()
			s, addr, _ := polite(t, func(s *service, c *programConfig) {
				c.Kind, c.Stubborn, c.Daemon, c.Child = "plain", true, daemon, daemon
				s.c.Drain = 5 * time.Second
			})
			a := s.under(addr, func() {
				s.reload()
				s.said("it is killed")
				s.alone()
			})
			noLoss(t, a.close)
			s.runs[0].cmd.Process.Signal(syscall.SIGTERM)
			if code := s.code(s.runs[0]); code != 128+int(syscall.SIGKILL) {
				t.Errorf("exit code %d, want the program's", code)
			}
			eventually(t, func() error { // what was killed takes a moment
				if left := s.left(); len(left) > 0 {
					return fmt.Errorf("processes %v are left", left)
				}
				return nil
			})
		})
	}
}

// TestStop: a stop loses nothing that was begun, and ends with 0 for the signal that was sent.
func TestStop(t *testing.T) {
	for _, kind := range []string{"plain", "polite", "guest"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s, addr, _ := polite(t, func(s *service, c *programConfig) {
				c.Kind = kind
				if kind == "guest" {
					s.c.Probes = []string{"notify"}
				}
			})
			s.mustAsk(addr, 1)
			s.runs[0].cmd.Process.Signal(syscall.SIGTERM)
			if code := s.code(s.runs[0]); code != 0 {
				t.Errorf("exit code %d", code)
			}
			if left := s.left(); len(left) > 0 {
				t.Errorf("processes %v are left", left)
			}
			if records := s.records(); len(records) > 0 {
				t.Errorf("records %+v are left", records)
			}
		})
	}
}

// TestPorts: the next version opens a new port and drops another.
func TestPorts(t *testing.T) {
	t.Parallel()
	kept, dropped, added := free(t, "tcp", "127.0.0.1"), free(t, "tcp", "127.0.0.1"), free(t, "tcp", "127.0.0.1")
	s, _, c := polite(t, func(s *service, c *programConfig) {
		c.Listen = []string{kept, dropped}
		s.c.Listen = []string{kept}
	})
	eventually(t, func() error { _, err := ask(dropped); return err })
	c.Listen = []string{kept, added}
	s.next(c)
	a := s.under(kept, func() {
		s.reload()
		last := s.alone()
		// What was not declared may come a moment after the switch.
		eventually(t, func() error {
			if n, err := ask(added); err != nil || n != last.Generation {
				return fmt.Errorf("generation %d answers at the new port: %v", n, err)
			}
			return nil
		})
	})
	noLoss(t, a.close)
	if n, err := ask(dropped); err == nil {
		t.Errorf("generation %d answers at the port that was dropped", n)
	}
	a = s.under(added, func() { s.reload() })
	noLoss(t, a.close)
}

// TestDropRefused: without a declaration the next version must listen on all that the old one
// did.
func TestDropRefused(t *testing.T) {
	t.Parallel()
	kept, dropped := free(t, "tcp", "127.0.0.1"), free(t, "tcp", "127.0.0.1")
	s, _, c := polite(t, func(s *service, c *programConfig) { c.Listen = []string{kept, dropped} })
	eventually(t, func() error { _, err := ask(dropped); return err })
	c.Listen = []string{kept}
	s.next(c)
	if reason := s.mustFail(control.ReloadRequest{Timeout: 5 * time.Second}); !strings.Contains(reason, dropped) {
		t.Errorf("reason %q, want %s in it", reason, dropped)
	}
	s.mustAsk(kept, 1)
	s.mustAsk(dropped, 1)
}

// TestBindLate: a port that a program opens while it serves is handed over too.
func TestBindLate(t *testing.T) {
	t.Parallel()
	later := free(t, "tcp", "127.0.0.1")
	s, addr, c := polite(t, func(s *service, c *programConfig) {
		c.Later = later
		s.c.Listen = []string{c.Listen[0]}
	})
	if resp, body, err := get(addr, "/later"); err != nil || resp.StatusCode != 200 {
		t.Fatalf("bind late: %v %s", err, body)
	}
	eventually(t, func() error { _, err := ask(later); return err })
	eventually(t, func() error {
		if r := s.alone(); len(r.Listeners) != 2 {
			return fmt.Errorf("listeners %+v, want 2", r.Listeners)
		}
		return nil
	})
	c.Listen = append(c.Listen, later)
	s.next(c)
	s.c.Listen = append(s.c.Listen, later)
	a := s.under(later, func() {
		// By hand, since the port is declared now.
		s.start()
		s.serving(1)
	})
	noLoss(t, a.close)
	if code := s.code(s.runs[0]); code != 0 {
		t.Errorf("the first launcher ended with %d", code)
	}
	s.mustAsk(later, 2)
}

// TestCloseOne: clients of a port that the program closes while it serves on others are refused,
// as they would be without overlap, and the port is free for others.
func TestCloseOne(t *testing.T) {
	for _, how := range []string{"signal", "status", "bind", "reload"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			dropped, later := free(t, "tcp", "127.0.0.1"), free(t, "tcp", "127.0.0.1")
			s, addr, c := polite(t, func(s *service, c *programConfig) {
				c.Listen = append(c.Listen, dropped)
				c.Drop, c.Later = dropped, later
			})
			eventually(t, func() error { _, err := ask(dropped); return err })
			if how == "signal" { // passed on
				s.runs[0].cmd.Process.Signal(syscall.SIGUSR1)
			} else {
				syscall.Kill(s.serving(0).Program.PID, syscall.SIGUSR1)
				listens(t, dropped, 1) // the placeholder alone
			}
			switch how {
			case "status":
				if _, err := control.Dial(s.socket(1)).Status(t.Context()); err != nil {
					t.Fatal(err)
				}
			case "bind":
				if _, _, err := get(addr, "/later"); err != nil {
					t.Fatal(err)
				}
				eventually(t, func() error { _, err := ask(later); return err })
			case "reload":
				c.Listen = c.Listen[:1]
				s.next(c)
				s.reload()
			}
			eventually(t, func() error {
				conn, err := net.DialTimeout("tcp", dropped, time.Second)
				if err == nil {
					conn.Close()
				}
				if !errors.Is(err, syscall.ECONNREFUSED) {
					return fmt.Errorf("connect: %v", err)
				}
				return nil
			})
			listens(t, dropped, 0)
			ln, err := net.Listen("tcp", dropped)
			if err != nil {
				t.Fatal(err)
			}
			ln.Close()
			s.mustAsk(addr, s.alone().Generation)
			if how != "bind" { // the next one must listen on the other port too
				s.reload()
			}
		})
	}
}

// TestWorkers: a program whose processes have a socket each for one port loses a worker, and starts
// another one: those that are left get all, and the next generation takes over without loss.
func TestWorkers(t *testing.T) {
	t.Parallel()
	s, addr, _ := polite(t, func(s *service, c *programConfig) { c.Workers = 3 })
	eventually(t, func() error {
		if r := s.serving(0); len(r.Listeners) != 1 || len(r.Listeners[0].Inodes) != 3 {
			return fmt.Errorf("listeners %+v", r.Listeners)
		}
		return nil
	})
	workers := func() map[string]bool {
		pids := map[string]bool{}
		for range 60 {
			if _, body, err := get(addr, "/"); err == nil {
				pids[strings.TrimSpace(strings.TrimPrefix(body, "pid "))] = true
			}
		}
		return pids
	}
	all := workers()
	if len(all) != 3 {
		t.Fatalf("workers %v answer, want 3", all)
	}
	before := s.serving(0).Listeners[0].Inodes
	for pid := range all {
		n, err := strconv.Atoi(pid)
		if err != nil {
			t.Fatal(err)
		}
		syscall.Kill(n, syscall.SIGKILL)
		delete(all, pid)
		break
	}
	eventually(t, func() error {
		if r := s.serving(0); len(r.Listeners[0].Inodes) != 3 || slices.Equal(r.Listeners[0].Inodes, before) {
			return fmt.Errorf("listeners %+v, before %v", r.Listeners, before)
		}
		return nil
	})
	noLoss(t, s.under(addr, func() {
		eventually(t, func() error {
			now := workers()
			for pid := range all {
				if !now[pid] {
					return fmt.Errorf("worker %s of %v gets nothing: %v", pid, all, now)
				}
			}
			if len(now) != 3 {
				return fmt.Errorf("workers %v answer, want 3", now)
			}
			return nil
		})
		s.reload()
		s.alone()
	}).close)
	if now := workers(); len(now) != 3 {
		t.Errorf("workers %v of the next generation answer, want 3", now)
	}
}

// TestReopen: a program opens its listener anew while it serves, and closes the one before. Without
// load at that moment: both get connections, so what is in the queue of the one it closes is lost,
// overlap or not.
func TestReopen(t *testing.T) {
	t.Parallel()
	s, addr, _ := polite(t, func(s *service, c *programConfig) { c.Reopen = true })
	before := s.serving(0).Listeners[0].Inodes
	s.runs[0].cmd.Process.Signal(syscall.SIGUSR2)
	eventually(t, func() error {
		r := s.serving(0)
		if now := r.Listeners[0].Inodes; len(now) != 1 || now[0] == before[0] {
			return fmt.Errorf("listeners %+v, before %v", r.Listeners, before)
		}
		return nil
	})
	noLoss(t, s.under(addr, func() {
		s.reload()
		s.alone()
	}).close)
}

// listens waits until so many sockets listen on an address.
func listens(t testing.TB, addr string, want int) {
	t.Helper()
	port := netip.MustParseAddrPort(addr).Port()
	eventually(t, func() error {
		there, err := reuse.Sockets("tcp", port)
		if err == nil && len(there) != want {
			err = fmt.Errorf("%d sockets listen on %s", len(there), addr)
		}
		return err
	})
}

// TestByHand: a second launcher takes over from the first, with another command.
func TestByHand(t *testing.T) {
	t.Parallel()
	s, addr, _ := polite(t)
	a := s.under(addr, func() {
		for i := range 3 {
			s.start()
			s.serving(i + 1)
			if code := s.code(s.runs[i]); code != 0 {
				t.Errorf("launcher %d ended with %d", i, code)
			}
		}
	})
	noLoss(t, a.close)
	say(t, a.keepAlive)
	if !strings.Contains(s.output(), "a newer launcher has taken over") {
		t.Error("the first launcher did not say why it ended")
	}
}

// TestReloadWhileStarting: a reload that comes too early is not forgotten.
func TestReloadWhileStarting(t *testing.T) {
	t.Parallel()
	s := newService(t)
	addr := free(t, "tcp", "127.0.0.1")
	s.goProgram(programConfig{Kind: "polite", Listen: []string{addr}})
	s.pause("started")
	s.start()
	s.paused()
	s.runs[0].cmd.Process.Signal(syscall.SIGHUP)
	s.said("the reload comes after that")
	s.goOn()
	s.serving(1)
	s.mustAsk(addr, s.alone().Generation)
}

// TestSignals: HUP reloads, USR1 is the program's business, and the second TERM cuts short.
func TestSignals(t *testing.T) {
	t.Parallel()
	s, addr, _ := polite(t, func(s *service, c *programConfig) {
		c.Kind, c.Stubborn = "plain", true
		s.c.Drain = 10 * time.Minute
	})
	s.runs[0].cmd.Process.Signal(syscall.SIGHUP)
	r := s.serving(1)
	s.mustAsk(addr, r.Generation)
	s.runs[0].cmd.Process.Signal(syscall.SIGTERM)
	s.said("msg=stopping")
	// The same signal sent to a whole group comes twice, so a second one counts a moment later.
	var ended bool
	eventually(t, func() error {
		s.runs[0].cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.runs[0].done:
			ended = true
		case <-time.After(200 * time.Millisecond):
			return fmt.Errorf("the launcher waits for its program")
		}
		return nil
	})
	if ended && len(s.left()) > 0 {
		t.Errorf("processes %v are left", s.left())
	}
}
