package lifecycle_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"overlap/lifecycle/bench"
	"overlap/lifecycle/control"
	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
)

// lightLoad is a few clients, for tests that look at something else than loss.
func (s *service) lightLoad(f func()) *bench.Result {
	s.t.Helper()
	return s.loadAs(bench.Both, 8, 2*time.Millisecond, f)
}

func noFailure(t *testing.T, r *bench.Result) {
	t.Helper()
	if r.Failed > 0 || r.Requests == 0 {
		t.Errorf("%d of %d requests failed: %v %+v", r.Failed, r.Requests, r.ByCause, r.Failures[:min(3, len(r.Failures))])
	}
}

// newcomers are generations that fail, and what is said of them. %PORT is the service's port,
// %STRANGER an address that this process listens on.
var newcomers = []struct {
	name   string
	change func(*config)
	words  string // in the reason, and on the newcomer's standard error unless it crashes
	code   int
	silent bool // it crashes
}{
	{"unhealthy", func(c *config) { c.Fail = "unhealthy" }, `503.*the database is gone`, exitUnhealthy, false},
	{"hangs in the check", func(c *config) { c.Fail = "hang" }, `start time-out of 1.5s`, exitUnhealthy, false},
	{"crashes before listening", func(c *config) { c.Fail = "crash before" }, `exit status 7`, 7, true},
	{"crashes in the check", func(c *config) { c.Fail = "crash in check" }, `exit status 8`, 8, true},
	{"BeforeReady fails", func(c *config) { c.Fail = "before ready" }, `before ready: no luck`, exitFailed, false},
	{"a server fails", func(c *config) { c.Fail = "server fails" }, `out of order`, exitFailed, false},
	{"a port of a stranger", func(c *config) { c.Listen = append(c.Listen, "tcp %STRANGER") },
		`%STRANGER is in use by pid %PID \(.+\), which is not of this service`, exitStranger, false},
	{"an overlapping address", func(c *config) { c.Listen = []string{"tcp 0.0.0.0:%PORT"} },
		`0\.0\.0\.0:%PORT and 127\.0\.0\.1:%PORT of generation 1`, exitOverlap, false},
	{"an address of another machine", func(c *config) { c.Listen = []string{"tcp 192.0.2.1:%PORT"} },
		`192\.0\.2\.1.*assign requested address`, exitFailed, false},
}

// TestFailures: a newcomer that fails changes nothing for clients, says why, and leaves nothing.
func TestFailures(t *testing.T) {
	needLinux(t)
	for _, how := range []string{"reload", "by hand"} {
		for _, n := range newcomers {
			t.Run(how+"/"+n.name, func(t *testing.T) {
				t.Parallel()
				stranger, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer stranger.Close()
				s := newService(t, config{Listen: []string{"tcp 127.0.0.1:0"}, Probe: "/healthz",
					Grace: 2 * time.Second})
				_, port, _ := net.SplitHostPort(s.address(0))
				fill := strings.NewReplacer("%PORT", port, "%STRANGER", stranger.Addr().String(), "%PID", strconv.Itoa(os.Getpid()))
				s.start()
				first := s.serving(0)
				r := s.lightLoad(func() {
					s.next(func(c *config) {
						c.Listen = slices.Clone(c.Listen)
						n.change(c)
						if n.code == exitUnhealthy {
							c.Start = 1500 * time.Millisecond
						}
						for i, l := range c.Listen {
							c.Listen[i] = fill.Replace(l)
						}
					})
					wanted := regexp.MustCompile(fill.Replace(n.words))
					// A probe that the start time-out cuts off can have the last word: once more then.
					said := false
					for try := 0; try < 5 && !said; try++ {
						words := s.failedStart(how, n.code)
						said = n.silent && how == "by hand" || wanted.MatchString(words)
						if !said && n.code != exitUnhealthy {
							t.Errorf("it said %s, want %s", words, wanted)
							break
						}
					}
					if !said {
						t.Errorf("it said nothing like %s", wanted)
					}
					s.mustAsk(first.Generation)
					if got := s.serving(0); got.Owner != first.Owner {
						t.Errorf("%+v serves, not generation %d", got, first.Generation)
					}
					s.next(func(*config) {})
					s.mustReload()
				})
				noFailure(t, r)
				s.onlyOne(s.serving(first.Generation))
			})
		}
	}
}

// failedStart starts a generation that must fail, by hand with the exit code, and returns what
// was said of it.
func (s *service) failedStart(how string, code int) (words string) {
	s.t.Helper()
	if how == "by hand" {
		if got := s.start().code(s.t); got != code {
			s.t.Errorf("exit code %d, want %d", got, code)
		}
		return s.output()
	}
	serves := s.serving(0).Generation
	out := s.reload()
	if out.Outcome != control.OutcomeFailed || out.From != serves {
		s.t.Errorf("outcome %+v, want a failure of generation %d's successor", out, serves)
	}
	return out.Reason
}

func needLinux(t testing.TB) {
	if runtime.GOOS != "linux" {
		t.Skip("handovers without loss need Linux")
	}
}

// onlyOne waits until nothing is left of all generations but one: no process and no file.
func (s *service) onlyOne(r state.Record) {
	s.t.Helper()
	n := strconv.Itoa(r.Generation)
	want := []string{"handover.lock", n + ".json", n + ".lock", n + ".sock"}
	slices.Sort(want)
	eventually(s.t, func() error {
		if got := s.files(); !slices.Equal(got, want) {
			return fmt.Errorf("files %v, want %v", got, want)
		}
		if got := s.processes(); !slices.Equal(got, []int{r.Owner.PID}) {
			return fmt.Errorf("processes %v, want %d", got, r.Owner.PID)
		}
		if got := children(r.Owner.PID); len(got) > 0 {
			return fmt.Errorf("children %v of the serving generation", got)
		}
		return nil
	})
}

// eventually waits until check returns nil.
func eventually(t testing.TB, check func() error) {
	t.Helper()
	err := check()
	for deadline := time.Now().Add(30 * time.Second); err != nil && time.Now().Before(deadline); err = check() {
		time.Sleep(5 * time.Millisecond)
	}
	if err != nil {
		t.Error(err)
	}
}

// files are those of the service's directory.
func (s *service) files() (names []string) {
	s.t.Helper()
	all, err := os.ReadDir(s.dir.Path())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, f := range all {
		names = append(names, f.Name())
	}
	return names
}

// processes are all test servers of the service, found by their environment.
func (s *service) processes() (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range all {
		env, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(env), envChild+"="+s.file+"\x00") {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		pids = append(pids, pid)
	}
	return pids
}

// children are the processes that a process started, dead ones that nobody waited for too.
func children(of int) (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, path := range all {
		if pid, _ := strconv.Atoi(filepath.Base(path)); process.Parent(pid) == of {
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestStartedTwice: of two starts at once one waits for the other, and both serve in turn.
func TestStartedTwice(t *testing.T) {
	needLinux(t)
	t.Parallel()
	s := newService(t, config{Listen: []string{"tcp 127.0.0.1:0"}, Probe: "/healthz", Grace: 2 * time.Second})
	first := s.start()
	r := s.serving(0)
	noFailure(t, s.lightLoad(func() {
		a, b := s.start(), s.start()
		last := s.serving(r.Generation + 1)
		if last.Generation != r.Generation+2 {
			t.Errorf("generation %d serves at last, want %d", last.Generation, r.Generation+2)
		}
		loser, winner := a, b
		if last.Owner.PID == a.cmd.Process.Pid {
			loser, winner = b, a
		}
		for _, p := range []*proc{first, loser} {
			if code := p.code(t); code != 0 {
				t.Errorf("exit code %d of a generation that drained", code)
			}
		}
		if last.Owner.PID != winner.cmd.Process.Pid {
			t.Errorf("pid %d serves, neither of the two", last.Owner.PID)
		}
		s.onlyOne(last)
	}))
}

// TestBusy: who waits in vain for another handover is told who holds it up, and a start that
// is stopped meanwhile leaves nothing.
func TestBusy(t *testing.T) {
	needLinux(t)
	t.Parallel()
	s := newService(t, config{Listen: []string{"tcp 127.0.0.1:0"}, Probe: "/healthz", Grace: 2 * time.Second})
	s.start()
	first := s.serving(0)
	noFailure(t, s.lightLoad(func() {
		s.next(func(c *config) { c.Fail = "hang" })
		slow := s.start()
		eventually(t, func() error {
			r, err := s.dir.Read(first.Generation + 1)
			if err == nil && len(r.Listeners) == 0 {
				err = fmt.Errorf("generation %d does not listen yet", r.Generation)
			}
			return err
		})
		s.next(func(c *config) { c.Start = 50 * time.Millisecond })
		if code := s.start().code(t); code != exitBusy {
			t.Errorf("exit code %d, want %d", code, exitBusy)
		}
		words := fmt.Sprintf("another handover is on its way (held by process %d: ", slow.cmd.Process.Pid)
		if out := s.output(); !strings.Contains(out, words) {
			t.Errorf("nobody said %q", words)
		}
		s.mustAsk(first.Generation)
		slow.cmd.Process.Signal(syscall.SIGTERM)
		if code := slow.code(t); code != exitFailed {
			t.Errorf("exit code %d of a start that was stopped, want %d", code, exitFailed)
		}
		if out := s.output(); !strings.Contains(out, "stopped by terminated while starting") {
			t.Error("the start that was stopped did not say so")
		}
		s.next(func(*config) {})
		s.mustReload()
	}))
	s.onlyOne(s.serving(first.Generation))
}
