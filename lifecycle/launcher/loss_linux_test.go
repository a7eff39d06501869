package launcher_test

import (
	"context"
	"errors"
	"flag"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"overlap/health/notify"
	"overlap/lifecycle/bench"
	"overlap/lifecycle/control"
	"overlap/lifecycle/launcher"
)

var reloads = flag.Int("reloads", 20, "how many reloads a loss test makes")

const clients = 32 // of each mode

// account is what the clients of a service noticed.
type account struct{ close, keepAlive *bench.Result }

// under puts the clients of both kinds on an address while f runs.
func (s *service) under(addr string, f func()) account {
	s.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	results := map[bench.Mode]chan *bench.Result{bench.Close: make(chan *bench.Result, 1), bench.KeepAlive: make(chan *bench.Result, 1)}
	errs := make(chan error, 2)
	var enough sync.WaitGroup // requests to say something
	number, think := clients, 6*time.Millisecond
	if s.calm {
		number, think = clients/3, 10*time.Millisecond
	}
	if raceDetector { // with which each request takes several times as long, and all tests wait for the CPUs
		number, think = number/2, think*4
	}
	for mode, to := range results {
		enough.Add(1)
		var once sync.Once
		l := bench.Load{Address: addr, Clients: number, Mode: mode, Timeout: waitFor, Think: think,
			Progress: func(p bench.Snapshot) {
				if p.Requests >= 200 {
					once.Do(enough.Done)
				}
			}}
		go func() {
			r, err := l.Run(ctx, nil)
			once.Do(enough.Done)
			errs <- err
			to <- r
		}()
	}
	func() {
		defer stop() // also when f ends the test
		f()
		enough.Wait()
	}()
	for range 2 {
		if err := <-errs; err != nil {
			s.t.Fatal(err)
		}
	}
	return account{<-results[bench.Close], <-results[bench.KeepAlive]}
}

// noLoss fails the test for requests that failed.
func noLoss(t testing.TB, r *bench.Result) {
	t.Helper()
	say(t, r)
	if r.Failed > 0 || r.Requests < 50 {
		t.Errorf("%s: %d of %d requests failed", r.Mode, r.Failed, r.Requests)
	}
}

func say(t testing.TB, r *bench.Result) {
	t.Helper()
	t.Logf("%s: %d requests, %d failed %v, %d delayed, max %s", r.Mode, r.Requests, r.Failed, r.ByCause, r.Delayed, r.Latency.Max)
	for i, f := range r.Failures {
		if i == 5 {
			break
		}
		t.Logf("%s %s after %s: %s", f.At.Format("05.000000"), f.Cause, f.Took, f.Error)
	}
}

// loss makes reloads under load and judges them.
func (s *service) loss(addr string, clean bool) account {
	s.t.Helper()
	return s.lossOver(*reloads, addr, clean)
}

// lossOver is loss for so many reloads.
func (s *service) lossOver(reloads int, addr string, clean bool) account {
	s.t.Helper()
	s.start()
	first := s.serving(0)
	last := first.Generation
	a := s.under(addr, func() {
		for range reloads {
			out := s.reload()
			if out.From != last || out.To <= last {
				s.t.Errorf("reload %+v, want from %d", out, last)
			}
			last = out.To
		}
	})
	noLoss(s.t, a.close)
	if clean {
		noLoss(s.t, a.keepAlive)
	} else {
		say(s.t, a.keepAlive)
	}
	if gens := len(a.close.ByGeneration); gens < 2 && a.close.ByGeneration[0].Generation != "" {
		s.t.Errorf("%d generations answered", gens)
	}
	s.alone()
	return a
}

// TestLoss: reloads of programs that know nothing of it lose no new connection.
func TestLoss(t *testing.T) {
	for _, srv := range servers() {
		t.Run(srv.name, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			addr := free(t, "tcp", "127.0.0.1")
			srv.setUp(s, addr)
			n := *reloads
			switch srv.name {
			case "java", "puma", "puma cluster": // which take longer to start than all others together
				n = min(n, 5)
			}
			s.lossOver(n, addr, srv.clean)
		})
	}
}

// TestLossIPv6 is TestLoss on [::1] and on a dual-stack wildcard.
func TestLossIPv6(t *testing.T) {
	for _, host := range []string{"::1", "::"} {
		t.Run(host, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			addr := free(t, "tcp", host)
			goServer("guest")(s, addr)
			s.loss(local(t, addr), true)
		})
	}
}

// TestLossUnprivileged is TestLoss with the launcher and the program as nobody.
func TestLossUnprivileged(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the other tests are that already: they don't run as root")
	}
	for _, kind := range []string{"plain", "guest"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			s.as(65534)
			addr := free(t, "tcp", "127.0.0.1")
			goServer(kind)(s, addr)
			s.loss(addr, kind == "guest")
		})
	}
}

// TestLossMade: where the launcher makes the sockets it can neither hide nor gate them, and what lies
// between two looks at the steering must be as empty.
func TestLossMade(t *testing.T) {
	for name, start := range map[string]func(*service, string){"go": goServer("polite"), "nginx reuseport": nginx("reuseport", 3)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			s.c.NoGetfd = true
			addr := free(t, "tcp", "127.0.0.1")
			start(s, addr)
			s.loss(addr, false)
			if times := strings.Count(s.output(), "sockets are made by the launcher"); times != 1 {
				t.Errorf("that it makes the sockets is said %d times in the life of a launcher", times)
			}
		})
	}
}

// TestReuseOff: a program that sets SO_REUSEPORT itself is handed over without a look at its binds.
func TestReuseOff(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.c.Reuse = launcher.ReuseOff
	addr := free(t, "tcp", "127.0.0.1")
	s.goProgram(programConfig{Kind: "polite", Listen: []string{addr}, Share: true})
	s.loss(addr, false)
}

// TestReuseOffRefused: what could not be handed over then is said at the first start.
func TestReuseOffRefused(t *testing.T) {
	for name, f := range map[string]struct {
		share, noGetfd bool
		says           string
	}{
		"not shared":   {false, false, launcher.ErrNotShared.Error()},
		"out of reach": {true, true, "pidfd_getfd"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			s.c.Reuse, s.c.NoGetfd = launcher.ReuseOff, f.noGetfd
			s.goProgram(programConfig{Kind: "polite", Listen: []string{free(t, "tcp", "127.0.0.1")}, Share: f.share})
			if code := s.code(s.start()); code != launcher.ExitOwnFailure {
				t.Errorf("exit code %d", code)
			}
			s.said(f.says)
			if left := s.left(); len(left) > 0 {
				t.Errorf("processes %v are left", left)
			}
		})
	}
}

// TestOtherUser: the program of a privileged launcher may become another user before it listens, and
// still says that it is ready, and finds its launcher.
func TestOtherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may become another user")
	}
	for _, kind := range []string{"polite", "guest"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			if err := os.Chmod(s.root, 0o755); err != nil {
				t.Fatal(err)
			}
			addr := free(t, "tcp", "127.0.0.1")
			s.c.Probes = []string{"notify"}
			s.goProgram(programConfig{Kind: kind, Listen: []string{addr}, User: 65534, Ready: true})
			s.loss(addr, kind == "guest")
		})
	}
}

// TestOtherUserKeptOut: where another user can't come to its launcher, a server with the library does not
// start: it would steer too.
func TestOtherUserKeptOut(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may become another user")
	}
	t.Parallel()
	s := newService(t)
	if err := os.Chmod(s.root, 0o700); err != nil {
		t.Fatal(err)
	}
	s.goProgram(programConfig{Kind: "guest", Listen: []string{free(t, "tcp", "127.0.0.1")}, User: 65534})
	if code := s.code(s.start()); code != 20 {
		t.Errorf("exit code %d, want the program's", code)
	}
	for _, text := range []string{"others can't enter " + s.root, "find the launcher that OVERLAP_OWNER names", "permission denied"} {
		if !strings.Contains(s.output(), text) {
			t.Errorf("%q is not said", text)
		}
	}
}

// TestSocketsForTheProgramAlone: whoever else connects to them is not believed, and not answered.
func TestSocketsForTheProgramAlone(t *testing.T) {
	s := newService(t)
	s.c.Probes, s.c.Start = []string{"notify"}, 2*time.Second
	s.goProgram(programConfig{Kind: "polite", Listen: []string{free(t, "tcp", "127.0.0.1")}})
	r := s.start()
	eventually(t, func() error {
		_, err := os.Lstat(s.open().LauncherPath(1))
		return err
	})
	t.Setenv("NOTIFY_SOCKET", s.open().NotifyPath(1))
	if err := notify.Send("READY=1"); err != nil {
		t.Error(err)
	}
	if status, err := control.Dial(s.open().LauncherPath(1)).Brief(t.Context()); !errors.Is(err, control.ErrNoOutcome) {
		t.Errorf("a stranger is told %+v, %v", status, err)
	}
	if code := s.code(r); code == 0 || !strings.Contains(s.output(), "never became ready") {
		t.Errorf("exit code %d: a stranger's READY=1 was believed", code)
	}
}

// reached are the ways in which a launcher gets hold of its program's sockets.
func reached(t *testing.T, f func(t *testing.T, s *service)) {
	t.Parallel()
	for name, refused := range map[string]bool{"fetch": false, "make": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			s.c.NoGetfd = refused
			f(t, s)
			s.noCopies()
			if got := strings.Contains(s.output(), "sockets are made by the launcher"); got != refused {
				t.Errorf("sockets were made: %v", got)
			}
		})
	}
}

// TestLossUDP: every datagram that reached the old generation is answered.
func TestLossUDP(t *testing.T) {
	reached(t, func(t *testing.T, s *service) { lossUDP(t, s, programConfig{Kind: "udp"}) })
}

// TestOwedAnswers: a program has the time of the stop delay to answer the datagrams that it has, as a
// forwarder does; one with the library has what it takes.
func TestOwedAnswers(t *testing.T) {
	for _, kind := range []string{"udp", "udp guest"} {
		t.Run(kind, func(t *testing.T) {
			reached(t, func(t *testing.T, s *service) {
				s.c.StopDelay = 2 * time.Second
				lossUDP(t, s, programConfig{Kind: kind, Answer: 100 * time.Millisecond})
			})
		})
	}
}

// TestOwedAnswersOfOrphan: the same for a program whose launcher was killed.
func TestOwedAnswersOfOrphan(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.c.StopDelay = time.Second
	addr := free(t, "udp", "127.0.0.1")
	s.goProgram(programConfig{Kind: "udp", Answer: 200 * time.Millisecond, Listen: []string{addr}})
	s.c.Listen = []string{"udp:" + addr}
	first := s.start()
	s.serving(0)
	r := underDatagrams(t, addr, func() {
		first.kill()
		time.Sleep(300 * time.Millisecond)
		s.start()
		s.serving(1)
		s.said("the old program is gone")
		time.Sleep(300 * time.Millisecond)
	})
	noLoss(t, r)
	if r.Requests < 50 {
		t.Errorf("%d datagrams only", r.Requests)
	}
}

func lossUDP(t *testing.T, s *service, c programConfig) {
	addr := free(t, "udp", "127.0.0.1")
	c.Listen = []string{addr}
	s.goProgram(c)
	s.c.Listen = []string{"udp:" + addr}
	if c.Kind == "udp guest" {
		s.c.Probes = []string{"notify"}
	}
	s.start()
	s.serving(0)
	noLoss(t, underDatagrams(t, addr, func() {
		for range *reloads {
			s.reload()
			time.Sleep(2 * c.Answer)
		}
	}))
	s.alone() // a stop does not wait for answers that nobody may owe
	began := time.Now()
	s.runs[0].cmd.Process.Signal(syscall.SIGTERM)
	s.code(s.runs[0])
	if took := time.Since(began); took >= s.c.StopDelay {
		t.Errorf("the stop took %v", took)
	}
}

// underDatagrams calls f while clients send datagrams, and returns what they noticed.
func underDatagrams(t *testing.T, addr string, f func()) *bench.Result {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	type end struct {
		r   *bench.Result
		err error
	}
	ended := make(chan end, 1)
	go func() {
		l := bench.Load{Address: addr, Network: "udp", Clients: 16, Body: []byte("hello"), Timeout: waitFor / 2, Think: 2 * time.Millisecond}
		if raceDetector {
			l.Think *= 4
		}
		r, err := l.Run(ctx, nil)
		ended <- end{r, err}
	}()
	func() {
		defer stop()
		f()
	}()
	e := <-ended
	if e.err != nil {
		t.Fatal(e.err)
	}
	return e.r
}

// TestDNS: a DNS server, UDP and TCP on one port, answers through its reloads.
func TestDNS(t *testing.T) { reached(t, dns) }

func dns(t *testing.T, s *service) {
	path := tool(t, "dnsmasq", "dnsmasq-base")
	addr := free(t, "tcp", "127.0.0.1")
	host, port := splitAddress(t, addr)
	s.c.Command = []string{path, "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--port=" + port,
		"--listen-address=" + host, "--bind-interfaces", "--user=root", "--pid-file=" + s.root + "/dnsmasq.pid",
		"--address=/overlap.test/192.0.2.7"}
	s.c.Listen = []string{addr, "udp:" + addr}
	s.start()
	s.serving(0)
	done := make(chan struct{})
	results := make(chan [2]int, 2)
	for _, network := range []string{"udp", "tcp"} {
		go func() {
			var asked, failed int
			for running := true; running; {
				select {
				case <-done:
					running = false
				default:
				}
				r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return (&net.Dialer{}).DialContext(ctx, network, addr)
				}}
				ctx, cancel := context.WithTimeout(context.Background(), waitFor)
				ips, err := r.LookupHost(ctx, "overlap.test.")
				cancel()
				asked++
				if err != nil || len(ips) != 1 || ips[0] != "192.0.2.7" {
					failed++
					t.Logf("%s: %v, %v", network, ips, err)
				}
			}
			results <- [2]int{asked, failed}
		}()
	}
	func() {
		defer close(done)
		for range *reloads {
			s.reload()
		}
	}()
	for range 2 {
		r := <-results
		t.Logf("%d questions, %d failed", r[0], r[1])
		if r[1] > 0 || r[0] < 10 {
			t.Errorf("%d of %d questions failed", r[1], r[0])
		}
	}
}

// TestLossIsSeen is the negative control: with steering off the same test sees loss.
func TestLossIsSeen(t *testing.T) {
	t.Parallel()
	s := newService(t)
	addr := free(t, "tcp", "127.0.0.1")
	goServer("plain")(s, addr)
	s.c.SteeringOff, s.c.StopDelay = true, -1
	s.start()
	s.serving(0)
	var failed, requests int64
	for round := 0; round < 20 && failed == 0; round++ {
		a := s.under(addr, func() {
			for range 3 {
				if out := s.tryReload(control.ReloadRequest{}); out.Outcome != control.OutcomeSwitched {
					t.Fatalf("reload: %+v", out)
				}
			}
		})
		failed += a.close.Failed
		requests += a.close.Requests
	}
	t.Logf("%d of %d requests with a connection of their own failed", failed, requests)
	if failed == 0 {
		t.Error("without steering nothing was lost: the loss tests prove nothing")
	}
}

// lines are those of a log that have a text.
func lines(out, text string) (found []string) {
	for line := range strings.Lines(out) {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found
}
