package launcher_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"overlap/lifecycle/bench"
	"overlap/lifecycle/control"
	"overlap/lifecycle/state"
)

// crash has the program crash while it serves.
func crash(t testing.TB, addr string) {
	t.Helper()
	if _, _, err := get(addr, "/crash"); err == nil {
		t.Fatal("the program did not crash")
	}
}

// TestCrash: a program that crashes is started again; what it had in hand is lost, and nobody is
// refused.
func TestCrash(t *testing.T) {
	t.Parallel()
	s, addr, _ := polite(t)
	a := s.under(addr, func() {
		for i := range 2 {
			crash(t, addr)
			s.serving(i + 1)
		}
	})
	for _, r := range []*bench.Result{a.close, a.keepAlive} {
		say(t, r)
		if n := r.ByCause[bench.Refused]; n > 0 {
			t.Errorf("%s: %d requests were refused", r.Mode, n)
		}
		// A dying process closes its connections before its listener, which has a lower
		// descriptor: a client can lose a request, connect again, and lose that too.
		if r.Failed > 2*2*clients {
			t.Errorf("%s: %d requests were lost, more than can have been in flight", r.Mode, r.Failed)
		}
	}
	if r := s.alone(); r.Generation != 3 {
		t.Errorf("generation %d serves, want 3", r.Generation)
	}
	s.mustAsk(addr, s.reload().To)
}

// TestGiveUp: a program that crashes again and again ends the launcher with the code of its last end.
func TestGiveUp(t *testing.T) {
	t.Parallel()
	s, addr, c := polite(t)
	crash(t, addr)
	s.serving(1)
	c.Fail = "crash early"
	s.next(c)
	crash(t, addr) // with 9; the others with 7
	if code := s.code(s.runs[0]); code != 7 {
		t.Errorf("exit code %d, want the program's last", code)
	}
	if n := len(lines(s.output(), "is started again")); n != 5 {
		t.Errorf("%d restarts, want 5", n)
	}
	if left := s.left(); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
}

// TestRestart: which ends are followed by a start, and with what the launcher ends else.
func TestRestart(t *testing.T) {
	for _, r := range []struct {
		policy, how string
		again       bool
		code        int
	}{
		{"no", "/crash", false, 9},
		{"no", "/end", false, 0},
		{"no", "/terminated", false, 143}, // by the stop signal, which nobody asked for
		{"on-failure", "/end", false, 0},
		{"always", "/end", true, 0},
		{"always", "/crash", true, 0},
	} {
		t.Run(r.policy+r.how, func(t *testing.T) {
			t.Parallel()
			s, addr, _ := polite(t, func(s *service, _ *programConfig) { s.c.Restart = r.policy })
			if _, _, err := get(addr, r.how); err == nil {
				t.Fatal("the program did not end")
			}
			if r.again {
				s.mustAsk(addr, s.serving(1).Generation)
				s.runs[0].cmd.Process.Signal(syscall.SIGTERM)
			}
			if code := s.code(s.runs[0]); code != r.code {
				t.Errorf("exit code %d, want %d", code, r.code)
			}
			if left := s.left(); len(left) > 0 {
				t.Errorf("processes %v are left", left)
			}
		})
	}
}

// TestCrashOfMaster: no worker serves on when the program's main process has ended and is not started again.
func TestCrashOfMaster(t *testing.T) {
	t.Parallel()
	s, addr, _ := polite(t, func(s *service, c *programConfig) { s.c.Restart, c.Master = "no", true })
	s.mustAsk(addr, 1)
	syscall.Kill(s.alone().Program.PID, syscall.SIGKILL)
	if code := s.code(s.runs[0]); code != 128+int(syscall.SIGKILL) {
		t.Errorf("exit code %d, want the program's", code)
	}
	if left := s.left(); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
}

// TestHold: clients of a program that is gone wait, until the hold is over: then they are refused. Without one they
// are at once.
func TestHold(t *testing.T) {
	for _, hold := range []time.Duration{-1, time.Second} {
		t.Run(hold.String(), func(t *testing.T) {
			t.Parallel()
			s, addr, c := polite(t, func(s *service, _ *programConfig) { s.c.Hold = hold })
			c.Fail = "never"
			s.next(c)
			crash(t, addr)
			s.said("is started again") // sooner a SYN is dropped, and the next one comes when the hold is over
			if hold < 0 {
				if _, err := dialed(addr); !errors.Is(err, syscall.ECONNREFUSED) { // later is a time-out
					t.Errorf("a client without a hold: %v", err)
				}
			}
			refused := make(chan error, 1)
			go func() {
				for {
					if _, err := ask(addr); errors.Is(err, syscall.ECONNREFUSED) {
						refused <- nil
						return
					}
				}
			}()
			select {
			case <-refused:
			case <-time.After(waitFor):
				t.Fatalf("nobody is refused\n%s", s.output())
			}
			if hold > 0 && !strings.Contains(s.output(), "clients are refused from now on") {
				t.Errorf("clients were refused before the hold was over\n%s", s.output())
			}
			// A stop in this state ends it too.
			s.runs[0].cmd.Process.Signal(syscall.SIGTERM)
			s.code(s.runs[0])
			if left := s.left(); len(left) > 0 {
				t.Errorf("processes %v are left", left)
			}
		})
	}
}

// TestCrashOfNew: where the new one crashes while the old one still listens, the old one serves
// on.
func TestCrashOfNew(t *testing.T) {
	t.Parallel()
	s, addr, _ := polite(t)
	old := s.alone()
	a := s.under(addr, func() {
		s.pause("proved") // the old one has not let go
		s.reload()
		s.paused()
		crash(t, addr)
		eventually(t, func() error {
			for _, r := range s.records() {
				if r.Generation != old.Generation {
					return fmt.Errorf("generation %d is still there", r.Generation)
				}
			}
			return nil
		})
		s.goOn()
		if r := s.alone(); r.Generation != old.Generation {
			t.Errorf("generation %d serves, want %d", r.Generation, old.Generation)
		}
		s.mustAsk(addr, old.Generation)
		s.reload()
	})
	for _, r := range []*bench.Result{a.close, a.keepAlive} {
		say(t, r)
		if n := r.ByCause[bench.Refused]; n > 0 {
			t.Errorf("%s: %d requests were refused", r.Mode, n)
		}
	}
}

// pause has the next launcher that comes to a step stop there. One whose generation serves has come to all of them: its record
// says so before it has.
func (s *service) pause(step string) {
	s.t.Helper()
	for _, r := range s.records() {
		if r.State == state.Serving {
			s.said(fmt.Sprintf("msg=serving service=%s generation=%d ", r.Service, r.Generation))
		}
	}
	for _, name := range []string{"paused", "go"} {
		os.Remove(filepath.Join(s.root, name))
	}
	writeFile(s.t, filepath.Join(s.root, "pause"), []byte(step))
}

// paused waits until it has.
func (s *service) paused() {
	s.t.Helper()
	eventually(s.t, func() error {
		if _, err := os.Stat(filepath.Join(s.root, "paused")); err != nil {
			return fmt.Errorf("nobody paused: %w\n%s", err, s.output())
		}
		return nil
	})
}

func (s *service) goOn() { writeFile(s.t, filepath.Join(s.root, "go"), nil) }

// kills are the steps of a handover within one launcher at which something is killed.
var kills = []struct {
	step     string
	switched bool // the new program has the connections
}{
	{"locked", false},
	{"greeted", false},
	{"started", false},
	{"old reserve", false},
	{"listening", false},
	{"old yield", false},
	{"yielded", false},
	{"settled", false},
	{"healthy", false},
	{"switched", true},
	{"recorded", true},
	{"told", true},
	{"proved", true},
	{"left", true},
}

// TestKillLauncher: whenever the launcher dies, the program that serves goes on, one that was
// only starting gets nothing, and a new launcher takes over without loss.
func TestKillLauncher(t *testing.T) {
	for _, k := range kills {
		t.Run(k.step, func(t *testing.T) {
			t.Parallel()
			s, addr, _ := polite(t)
			old := s.alone()
			a := s.under(addr, func() {
				s.pause(k.step)
				s.reloadAnyway(s.runs[0].kill)
				// Enough requests to notice whom the kernel sends them to.
				for range 50 {
					n, err := ask(addr)
					if err != nil {
						t.Errorf("after the launcher's death: %v", err)
						break
					}
					if !k.switched && n != old.Generation {
						t.Errorf("generation %d answers, it was only starting", n)
						break
					}
				}
				s.start()
				last := s.serving(old.Generation)
				eventually(t, func() error {
					if n, err := ask(addr); err != nil || n != last.Generation {
						return fmt.Errorf("generation %d answers, %v; want %d", n, err, last.Generation)
					}
					return nil
				})
				s.reload()
				s.alone()
			})
			noLossWithin(t, a.close, s.c.StopDelay)
			if k.switched && strings.Contains(s.output(), "a program was starting when its launcher died") {
				t.Error("a program that had clients was killed")
			}
			say(t, a.keepAlive)
			eventually(t, func() error {
				if n := len(s.left()); n != 2 {
					return fmt.Errorf("%d processes are left, want the launcher and its program\n%s", n, s.output())
				}
				return nil
			})
		})
	}
}

// reloadAnyway reloads, and calls f at the step where the launcher pauses.
func (s *service) reloadAnyway(f func()) {
	s.t.Helper()
	r := s.serving(0)
	done := make(chan string, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), waitFor)
		defer cancel()
		out, err := control.Dial(s.socket(r.Generation)).Reload(ctx, control.ReloadRequest{}, nil)
		done <- fmt.Sprintf("reload: %+v, %v", out, err)
	}()
	s.paused()
	f()
	s.goOn()
	select {
	case out := <-done:
		s.t.Log(out)
	case <-time.After(waitFor):
		s.t.Fatalf("the reload has no outcome\n%s", s.output())
	}
}

// TestKillProgram: whenever a program is killed in a handover, one that is healthy serves, and
// nobody is refused.
func TestKillProgram(t *testing.T) {
	for _, k := range kills {
		for _, who := range []string{"old", "new"} {
			if who == "new" && (k.step == "locked" || k.step == "greeted") {
				continue // it does not exist yet
			}
			t.Run(who+"/"+k.step, func(t *testing.T) {
				t.Parallel()
				s, addr, _ := polite(t)
				old := s.alone()
				serving := (who == "new") == k.switched
				a := s.under(addr, func() {
					s.pause(k.step)
					s.reloadAnyway(func() { s.killPrograms(old, who) })
					eventually(t, func() error { _, err := ask(addr); return err })
					eventually(t, func() error { return s.settled() })
					// A restart of the old program waits for the handover, and must not undo it.
					if r := s.alone(); who == "old" && r.Generation != old.Generation+1 {
						t.Errorf("generation %d serves, want the one that was asked for", r.Generation)
					}
					s.reload()
				})
				for _, r := range []*bench.Result{a.close, a.keepAlive} {
					say(t, r)
					if n := r.ByCause[bench.Refused]; n > 0 {
						t.Errorf("%s: %d requests were refused", r.Mode, n)
					}
					if r.Mode == bench.Close && !serving && !k.switched && r.Failed > 0 {
						t.Errorf("%d requests failed, and the dead program never had one", r.Failed)
					}
					if r.Failed > 3*clients {
						t.Errorf("%s: %d requests were lost, more than can have been in flight", r.Mode, r.Failed)
					}
				}
			})
		}
	}
}

// settled reports whether one generation serves with a program that lives, and no other is there.
func (s *service) settled() error {
	records := s.records()
	if len(records) != 1 || records[0].State != state.Serving || !alive(records[0].Program) {
		return fmt.Errorf("generations %+v, want one that serves\n%s", records, s.output())
	}
	return nil
}

// killPrograms kills the program of the old generation, or the one that is new.
func (s *service) killPrograms(old state.Record, who string) {
	s.t.Helper()
	if who == "old" {
		syscall.Kill(old.Program.PID, syscall.SIGKILL)
		return
	}
	for _, pid := range s.left() {
		if pid != old.Program.PID && pid != old.Owner.PID {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// TestKillBoth: launcher and program die at once, and the next launcher finds a usable state.
func TestKillBoth(t *testing.T) {
	for _, k := range []string{"", "settled", "switched", "proved"} {
		t.Run("at "+k, func(t *testing.T) {
			t.Parallel()
			s, addr, _ := polite(t)
			old := s.alone()
			all := func() {
				s.runs[0].kill()
				for _, pid := range s.left() {
					syscall.Kill(pid, syscall.SIGKILL)
				}
			}
			if k == "" {
				all()
			} else {
				s.pause(k)
				s.reloadAnyway(all)
			}
			s.start()
			s.mustAsk(addr, s.serving(old.Generation).Generation)
			s.mustAsk(addr, s.reload().To)
			s.alone()
		})
	}
}

// TestTakeOver: a program whose launcher died is found and taken over, also one
// of several sockets.
func TestTakeOver(t *testing.T) {
	for _, srv := range servers() {
		if srv.name != "nginx reuseport" && srv.name != "node" && srv.name != "go guest" {
			continue
		}
		t.Run(srv.name, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			addr := free(t, "tcp", "127.0.0.1")
			srv.setUp(s, addr)
			s.start()
			for range 2 {
				s.serving(0)
				s.reload()
			}
			old := s.alone()
			a := s.under(addr, func() {
				s.runs[0].kill()
				if l := old.Listeners[0]; len(l.Inodes) > 1 {
					// The launcher may die before it has recorded all sockets.
					old.Listeners[0].Inodes = l.Inodes[:1]
					if err := s.open().Write(old); err != nil {
						t.Fatal(err)
					}
				}
				s.start()
				s.serving(old.Generation)
				s.alone()
				s.reload()
			})
			noLoss(t, a.close)
			say(t, a.keepAlive)
		})
	}
}

// TestMasterOfStart: what is left of a program that was starting when its launcher and its main process were killed is
// in the way of no start.
func TestMasterOfStart(t *testing.T) {
	for _, step := range []string{"listening", "settled"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			addr := free(t, "tcp", "127.0.0.1")
			s.goProgram(programConfig{Kind: "polite", Listen: []string{addr}, Master: true})
			s.pause(step)
			r := s.start()
			s.paused()
			starting := s.records()[0]
			r.kill()
			syscall.Kill(starting.Program.PID, syscall.SIGKILL)
			eventually(t, func() error {
				if alive(starting.Program) || len(s.left()) != 1 {
					return errors.New("the main process does not die")
				}
				return nil
			})
			left := s.left()[0]
			s.start()
			g := s.alone()
			s.mustAsk(addr, g.Generation)
			if slices.Contains(s.left(), left) {
				t.Errorf("process %d is left", left)
			}
		})
	}
}

// TestMasterWithoutLauncher: of a program whose launcher was killed nothing is left behind, whether its main process
// lives or only a worker: neither by the launcher that takes over nor by a stop.
func TestMasterWithoutLauncher(t *testing.T) {
	for _, masterDies := range []bool{false, true} {
		orphan := func(t *testing.T) (*service, string) {
			t.Parallel()
			s, addr, _ := polite(t, func(_ *service, c *programConfig) { c.Master = true })
			r := s.alone()
			s.runs[0].kill()
			if masterDies {
				syscall.Kill(r.Program.PID, syscall.SIGKILL)
				eventually(t, func() error {
					if alive(r.Program) {
						return errors.New("it does not die")
					}
					return nil
				})
			}
			s.mustAsk(addr, 1)
			return s, addr
		}
		t.Run(fmt.Sprintf("takeover, master dies=%v", masterDies), func(t *testing.T) {
			s, addr := orphan(t)
			noLoss(t, s.under(addr, func() {
				s.start()
				s.serving(1)
				s.said("the old program is gone")
				s.reload()
				s.alone()
			}).close)
			if left := s.left(); len(left) != 3 {
				t.Errorf("processes %v, want the launcher, its program and the worker", left)
			}
		})
		t.Run(fmt.Sprintf("stop, master dies=%v", masterDies), func(t *testing.T) {
			s, _ := orphan(t)
			if code, out := s.overlap("stop", s.c.Name); code != 0 {
				t.Errorf("stop: exit code %d: %s", code, out)
			}
			if left := s.left(); len(left) > 0 {
				t.Errorf("processes %v are left", left)
			}
		})
	}
}

// TestStopDuringOrphan: a launcher that is told to stop waits for the drain of a program whose launcher was killed as
// long as for its own, and not after a second signal.
func TestStopDuringOrphan(t *testing.T) {
	const most = 15 * time.Second
	for _, how := range []string{"second signal", "time-out"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			s, _, c := polite(t, func(s *service, c *programConfig) { s.c.Drain, c.Stubborn, c.Kind = waitFor, true, "plain" })
			s.runs[0].kill()
			c.Stubborn = false
			s.next(c)
			r := s.start()
			s.serving(1)
			began := time.Now()
			if how == "time-out" {
				// Not with the command, which would end the old program too.
				ctx, cancel := context.WithTimeout(context.Background(), waitFor)
				defer cancel()
				control.Dial(s.socket(2)).Stop(ctx, control.StopRequest{Timeout: time.Second}, nil)
			} else {
				r.cmd.Process.Signal(syscall.SIGTERM)
				s.said("stopping")
				time.Sleep(300 * time.Millisecond) // sooner it is the same signal
				r.cmd.Process.Signal(syscall.SIGTERM)
			}
			s.code(r)
			if took := time.Since(began); took > most {
				t.Errorf("it took %v", took)
			}
			if left := s.left(); len(left) > 0 {
				t.Errorf("processes %v are left", left)
			}
		})
	}
}

// TestStopTakenBack: a stop remains a plain one, and says so, where a newer generation switches meanwhile and dies.
func TestStopTakenBack(t *testing.T) {
	t.Parallel()
	s, addr, _ := polite(t, func(s *service, c *programConfig) { s.c.StopDelay, c.Kind = 10*time.Second, "plain" })
	first := s.alone()
	s.pause("healthy")
	second := s.start()
	s.paused()
	// A request that does not end keeps the first one from letting go of its sockets.
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST /slow HTTP/1.1\r\n"); err != nil {
		t.Fatal(err)
	}
	s.runs[0].cmd.Process.Signal(syscall.SIGTERM)
	eventually(t, func() error {
		if r, err := s.open().Read(first.Generation); err != nil || r.State != state.Draining {
			return fmt.Errorf("it is %s, %v, want draining", r.State, err)
		}
		return nil
	})
	s.goOn()
	last := s.serving(first.Generation)
	s.said(fmt.Sprintf("msg=serving service=web generation=%d ", last.Generation)) // by then the first has been told
	second.kill()
	syscall.Kill(last.Program.PID, syscall.SIGKILL)
	s.said("this one serves again")
	conn.Close()
	if code := s.code(s.runs[0]); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, untrue := range []string{"a newer generation serves", "a newer launcher has taken over"} {
		if len(lines(s.output(), untrue)) > 0 {
			t.Errorf("%q was said", untrue)
		}
	}
}

// noLossWithin is noLoss for requests that a busy machine did not keep longer than the stop
// delay: one that it did may be cut with its program, which is what the delay says.
func noLossWithin(t testing.TB, r *bench.Result, delay time.Duration) {
	t.Helper()
	say(t, r)
	slow := 0
	for _, f := range r.Failures {
		if f.Took > delay && f.Cause == bench.EOF {
			slow++
		}
	}
	if int(r.Failed) > slow || r.Requests < 50 {
		t.Errorf("%s: %d of %d requests failed, %d of them slow", r.Mode, r.Failed, r.Requests, slow)
	}
}
