package launcher_test

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"overlap/lifecycle/control"
)

var growth = flag.Int("growth", 60, "how many reloads the growth test makes")

// status is a number of /proc/PID/status; kB where it is memory.
func status(t testing.TB, file, field string) int {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		return 0 // a thread that ended
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), field+":"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	return 0
}

func memory(t testing.TB, pid int, field string) int {
	t.Helper()
	return status(t, fmt.Sprintf("/proc/%d/status", pid), field)
}

// wakeups are the times that a process's threads have given up the CPU to wait.
func wakeups(t testing.TB, pid int) (n int) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		n += status(t, file, "voluntary_ctxt_switches")
	}
	return n
}

// footprint is what a service takes when one generation is left.
type footprint struct {
	descriptors, files, processes, threads int
	memory                                 int // kB that no file backs
}

func (s *service) footprint() footprint {
	s.t.Helper()
	r := s.alone()
	eventually(s.t, func() error {
		if n := len(s.left()); n != 2 {
			return fmt.Errorf("%d processes, want the launcher and its program", n)
		}
		return nil
	})
	pid := r.Owner.PID
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		s.t.Fatal(err)
	}
	files, err := os.ReadDir(s.open().Path())
	if err != nil {
		s.t.Fatal(err)
	}
	return footprint{len(fds), len(files), len(s.left()), memory(s.t, pid, "Threads"), memory(s.t, pid, "RssAnon")}
}

// TestGrowth: reload after reload, the launcher does not grow.
func TestGrowth(t *testing.T) {
	t.Parallel()
	s, addr, _ := polite(t)
	for range 5 {
		s.reload()
	}
	began := s.footprint()
	for range *growth - 5 {
		s.reload()
	}
	var ended footprint
	eventually(t, func() error { // what is over takes a moment to close
		ended = s.footprint()
		if ended.descriptors > began.descriptors+2 || ended.files > began.files || ended.threads > began.threads+8 {
			return fmt.Errorf("after 5 reloads: %+v, after %d: %+v", began, *growth, ended)
		}
		return nil
	})
	t.Logf("after 5 reloads: %+v, after %d: %+v", began, *growth, ended)
	if limit := began.memory*3/2 + 8<<10; ended.memory > limit {
		t.Errorf("%d kB of memory, it was %d", ended.memory, began.memory)
	}
	s.mustAsk(addr, s.alone().Generation)
}

// TestManyListeners: a program with 100 ports is handed over.
func TestManyListeners(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := programConfig{Kind: "polite"}
	var lns []net.Listener
	for range 100 { // all at once, so that they differ
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		lns = append(lns, ln)
		c.Listen = append(c.Listen, ln.Addr().String())
	}
	for _, ln := range lns {
		ln.Close()
	}
	s.c.Listen = c.Listen
	s.goProgram(c)
	s.start()
	s.serving(0)
	a := s.under(c.Listen[99], func() {
		out := s.reload()
		t.Logf("100 listeners: switched after %.0f ms", out.SwitchMS)
		s.mustAsk(c.Listen[0], out.To)
	})
	noLoss(t, a.close)
	r := s.alone()
	for _, addr := range c.Listen {
		s.mustAsk(addr, r.Generation)
	}
}

// TestIdle logs what a launcher costs that has nothing to do: it sleeps, and has let go of most of
// its executable.
func TestIdle(t *testing.T) {
	s, addr, _ := polite(t)
	s.reload()
	pid := s.alone().Owner.PID
	busy := memory(t, pid, "RssFile")
	// The launcher makes itself small, and ready for the next start, and its threads come to rest.
	time.Sleep(3 * time.Second)
	last := wakeups(t, pid)
	for range 20 {
		time.Sleep(200 * time.Millisecond)
		now := wakeups(t, pid)
		if now == last {
			break
		}
		last = now
	}
	before := wakeups(t, pid)
	time.Sleep(2 * time.Second)
	n := wakeups(t, pid) - before
	t.Logf("%d wake-ups in 2 s, %d kB resident, %d kB of it no file's", n, memory(t, pid, "VmRSS"), memory(t, pid, "RssAnon"))
	if n > 100 {
		t.Errorf("%d wake-ups in 2 s: something polls", n)
	}
	if rest := memory(t, pid, "RssFile"); rest > busy/2 && !strings.Contains(s.output(), "the executable's pages stay mapped") {
		t.Errorf("%d kB of files are mapped at rest, it was %d after a reload", rest, busy)
	}
	s.mustAsk(addr, s.reload().To) // it comes back
}

// TestOneProcessor: the launcher's goroutines take turns on one processor, which saves a fifth of a reload's CPU
// time; the program has those of the machine.
func TestOneProcessor(t *testing.T) {
	if runtime.NumCPU() == 1 {
		t.Skip("there is one processor only")
	}
	t.Setenv("GODEBUG", "schedtrace=20") // Go's own account, of the launcher and of its program
	s, _, _ := polite(t)
	s.said("gomaxprocs=1 ")
	s.said(fmt.Sprintf("gomaxprocs=%d ", runtime.NumCPU()))
}

// startAlone is the time a program of the tests takes from its start until it listens.
func startAlone(b *testing.B, s *service, addr string) time.Duration {
	b.Helper()
	began := time.Now()
	cmd := exec.Command(s.c.Command[0], s.c.Command[1:]...)
	cmd.Env = append(os.Environ(), envRoot+"="+s.root)
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	for deadline := began.Add(waitFor); ; {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return time.Since(began)
		}
		if time.Now().After(deadline) {
			b.Fatal(err)
		}
	}
}

func median(of []time.Duration) time.Duration {
	slices.Sort(of)
	return of[len(of)/2]
}

// BenchmarkRun measures what a handover takes beyond the program's own start.
func BenchmarkRun(b *testing.B) {
	for _, idle := range []int{0, 1000, 5000} {
		b.Run(fmt.Sprintf("idle=%d", idle), func(b *testing.B) {
			s := newService(b)
			addr := free(b, "tcp", "127.0.0.1")
			s.goProgram(programConfig{Kind: "plain", Listen: []string{addr}})
			s.c.StopDelay = 50 * time.Millisecond
			var alone []time.Duration
			for range 20 {
				alone = append(alone, startAlone(b, s, addr))
			}
			s.start()
			r := s.serving(0)
			var took []time.Duration
			for b.Loop() {
				b.StopTimer()
				var conns []net.Conn
				for i := range idle {
					d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(1+i%4))}}
					c, err := d.Dial("tcp", addr)
					if err != nil {
						b.Fatal(err)
					}
					c.(*net.TCPConn).SetLinger(0) // a port in TIME_WAIT would be missing soon
					conns = append(conns, c)
				}
				if _, _, err := get(addr, "/"); err != nil { // behind them in the queue
					b.Fatal(err)
				}
				time.Sleep(100 * time.Millisecond) // they are idle, not new
				b.StartTimer()
				out, err := control.Dial(s.socket(r.Generation)).Reload(context.Background(), control.ReloadRequest{}, nil)
				b.StopTimer()
				if err != nil || out.Outcome != control.OutcomeSwitched {
					b.Fatalf("%+v, %v\n%s", out, err, s.output())
				}
				took = append(took, time.Duration(out.SwitchMS*float64(time.Millisecond)))
				for _, c := range conns {
					c.Close()
				}
				r = s.alone()
				b.StartTimer()
			}
			b.ReportMetric(float64(median(alone).Microseconds())/1000, "alone-ms")
			b.ReportMetric(float64((median(took)-median(alone)).Microseconds())/1000, "overhead-ms")
			pid := s.runs[0].cmd.Process.Pid
			b.ReportMetric(float64(memory(b, pid, "VmRSS"))/1024, "rss-MB")
			time.Sleep(3 * time.Second) // it becomes small
			b.ReportMetric(float64(memory(b, pid, "VmRSS"))/1024, "rss-at-rest-MB")
		})
	}
}
