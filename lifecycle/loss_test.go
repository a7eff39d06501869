package lifecycle_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"overlap/lifecycle/bench"
	"overlap/lifecycle/control"
)

var lossAddresses = []string{"tcp 127.0.0.1:0", "tcp [::1]:0", "tcp [::]:0"}

// load puts 64 clients with a connection for each request, and 64 with keep-alive, on the
// service while f runs, and returns the account.
func (s *service) load(f func()) *bench.Result {
	s.t.Helper()
	return s.loadAs(bench.Both, 128, time.Millisecond, f)
}

func (s *service) loadAs(mode bench.Mode, clients int, think time.Duration, f func()) *bench.Result {
	s.t.Helper()
	body := bytes.Repeat([]byte("x"), 300)
	l := bench.Load{Address: s.address(0), Clients: clients, Mode: mode, Method: "POST", Path: "/echo", Body: body,
		Check: bench.CheckBytes(len(body)), Timeout: 60 * time.Second, Think: think}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	type end struct {
		r   *bench.Result
		err error
	}
	ended := make(chan end, 1)
	go func() {
		r, err := l.Run(ctx, nil)
		ended <- end{r, err}
	}()
	func() {
		defer stop()
		f()
	}()
	e := <-ended
	if e.err != nil {
		s.t.Fatal(e.err)
	}
	return e.r
}

func noLoss(t *testing.T, r *bench.Result) {
	t.Helper()
	t.Logf("%d requests, %d failed %v, %d delayed, max %s", r.Requests, r.Failed, r.ByCause, r.Delayed, r.Latency.Max)
	if r.Failed > 0 || r.Requests < 100 {
		for i, f := range r.Failures {
			if i == 5 {
				break
			}
			t.Logf("%s %s %s after %s: %s", f.At.Format("05.000000"), f.Mode, f.Cause, f.Took, f.Error)
		}
		t.Errorf("%d of %d requests failed", r.Failed, r.Requests)
	}
}

// TestLoss: handovers under load lose nothing, on every kind of address, by reload and by a
// second start by hand.
func TestLoss(t *testing.T) {
	for _, addr := range lossAddresses {
		for _, how := range []string{"reload", "by hand"} {
			t.Run(fmt.Sprintf("%s %s", addr, how), func(t *testing.T) {
				s := newService(t, config{Listen: []string{addr}, Probe: "/healthz", Grace: time.Second})
				s.start()
				last := s.serving(0)
				r := s.load(func() {
					for range *handovers {
						if how == "reload" {
							s.mustReload()
						} else {
							s.start()
						}
						last = s.serving(last.Generation)
					}
				})
				noLoss(t, r)
				// One that is soon replaced, on a busy machine, may have answered nobody.
				if len(r.ByGeneration) < *handovers/2 {
					t.Errorf("only %d generations answered", len(r.ByGeneration))
				}
			})
		}
	}
}

// TestLongQueue: connections that wait to be accepted at the switch are served.
func TestLongQueue(t *testing.T) {
	s := newService(t, config{Listen: []string{"tcp 127.0.0.1:0"}, Probe: "/healthz", Grace: time.Second, AcceptDelay: 2 * time.Millisecond})
	s.start()
	last := s.serving(0)
	noLoss(t, s.load(func() {
		for range 5 {
			s.mustReload()
			last = s.serving(last.Generation)
		}
	}))
}

// TestLossIsSeen is the negative control: with one mechanism off, the same test sees failures.
func TestLossIsSeen(t *testing.T) {
	for name, off := range map[string]func(*config){
		"steering":     func(c *config) { c.SteeringOff = true },
		"queue proof":  func(c *config) { c.ProofOff = true; c.AcceptDelay = 2 * time.Millisecond },
		"announcement": func(c *config) { c.AnnounceOff = true; c.Grace = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			c := config{Listen: []string{"tcp 127.0.0.1:0"}, Probe: "/healthz", Grace: time.Second}
			off(&c)
			mode, think := bench.Both, time.Millisecond
			if c.AnnounceOff { // it matters to connections that are idle at the wrong moment
				mode, think = bench.KeepAlive, 300*time.Microsecond
			}
			s := newService(t, c)
			s.start()
			last := s.serving(0)
			var failed, requests int64
			for round := 0; round < 40 && failed == 0; round++ {
				r := s.loadAs(mode, 128, think, func() {
					for range 5 {
						if s.reload().Outcome == control.OutcomeSwitched {
							last = s.serving(last.Generation)
						}
					}
				})
				failed += r.Failed
				requests += r.Requests
			}
			t.Logf("%d of %d requests failed", failed, requests)
			if failed == 0 {
				t.Errorf("without the %s nothing was lost: the loss test proves nothing", name)
			}
		})
	}
}
