package health

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// script is a probe that does as it is told: one function a try, the last one
// for all that follow.
type script struct {
	tries atomic.Int32
	steps []func(context.Context) error
}

func (s *script) check(ctx context.Context, _ Target) error {
	n := int(s.tries.Add(1))
	return s.steps[min(n, len(s.steps))-1](ctx)
}

func (s *script) spec(name string) Spec { return Spec{kind: "script", text: name, probe: s} }

var (
	errWarm = errors.New("warming up")
	pass    = func(context.Context) error { return nil }
	fail    = func(context.Context) error { return errWarm }
	hang    = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
)

// fast lets no time-out decide.
var fast = Gate{Interval: time.Millisecond, Timeout: time.Hour, StartTimeout: time.Hour}

func TestGatePasses(t *testing.T) {
	s := &script{steps: []func(context.Context) error{fail, fail, pass}}
	if err := fast.Wait(t.Context(), Target{}, s.spec("s")); err != nil {
		t.Fatal(err)
	}
	if n := s.tries.Load(); n != 3 {
		t.Errorf("%d tries, want 3", n)
	}
	if err := (Gate{}).Wait(t.Context(), Target{}); err != nil {
		t.Errorf("without specs: %v", err)
	}
	if err := (Gate{StartTimeout: -1}).Wait(t.Context(), Target{}, mustParse(t, "none", Options{})); err != nil {
		t.Errorf("without a start time-out: %v", err)
	}
}

func TestGateSuccessesInARow(t *testing.T) {
	g := fast
	g.Successes = 3
	s := &script{steps: []func(context.Context) error{pass, pass, fail, pass, pass, pass}}
	if err := g.Wait(t.Context(), Target{}, s.spec("s")); err != nil {
		t.Fatal(err)
	}
	if n := s.tries.Load(); n != 6 {
		t.Errorf("%d tries, want 6", n)
	}
}

func TestGateWantsAll(t *testing.T) {
	a := &script{steps: []func(context.Context) error{pass, fail, pass}}
	b := &script{steps: []func(context.Context) error{fail, pass}}
	if err := fast.Wait(t.Context(), Target{}, a.spec("a"), b.spec("b")); err != nil {
		t.Fatal(err)
	}
	// a b!, a!, a b
	if a.tries.Load() != 3 || b.tries.Load() != 2 {
		t.Errorf("a was tried %d times, b %d", a.tries.Load(), b.tries.Load())
	}
}

func TestGateFailures(t *testing.T) {
	g := fast
	g.Failures = 2
	s := &script{steps: []func(context.Context) error{fail}}
	err := g.Wait(t.Context(), Target{}, s.spec("/healthz"))
	wantError(t, err, "unhealthy: 3 failed tries, and 2 are allowed: health check /healthz tried 3 times in ", "last: warming up")
	if !errors.Is(err, ErrUnhealthy) || !errors.Is(err, errWarm) || errors.Is(err, ErrGone) {
		t.Errorf("%v wraps the wrong errors", err)
	}
	s = &script{steps: []func(context.Context) error{fail, fail, pass}}
	if err := g.Wait(t.Context(), Target{}, s.spec("s")); err != nil {
		t.Errorf("with as many failures as are allowed: %v", err)
	}
}

func TestGateStartTimeout(t *testing.T) {
	g := fast
	g.StartTimeout = 30 * time.Millisecond
	for name, test := range map[string]struct {
		steps []func(context.Context) error
		tries int32 // from which on the words are certain, on a machine however busy
		words []string
	}{
		"fails":  {[]func(context.Context) error{fail}, 2, []string{"the start time-out of 30ms is over: health check /up tried ", "last: warming up"}},
		"hangs":  {[]func(context.Context) error{hang}, 1, []string{"tried once in ", "last: no answer yet"}},
		"passes": {[]func(context.Context) error{pass}, 2, []string{"healthy so far, but 1000000 in a row are wanted"}},
	} {
		t.Run(name, func(t *testing.T) {
			g := g
			if name == "passes" {
				g.Successes = 1000000
			}
			s := &script{steps: test.steps}
			err := g.Wait(t.Context(), Target{}, s.spec("/up"))
			if !errors.Is(err, ErrUnhealthy) {
				t.Fatalf("%v does not wrap ErrUnhealthy", err)
			}
			if s.tries.Load() >= test.tries {
				wantError(t, err, test.words...)
			}
		})
	}
}

func TestGateProbeTimeout(t *testing.T) {
	g := fast
	g.Timeout = 10 * time.Millisecond
	g.Failures = 1
	s := &script{steps: []func(context.Context) error{hang}}
	err := g.Wait(t.Context(), Target{}, s.spec("s"))
	wantError(t, err, "tried 2 times in ", "last: no answer within 10ms")
}

func TestGateDeadlineAndCancel(t *testing.T) {
	s := &script{steps: []func(context.Context) error{fail, hang}}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	late := fast.Wait(ctx, Target{}, s.spec("s"))
	if !errors.Is(late, ErrUnhealthy) || !errors.Is(late, context.DeadlineExceeded) {
		t.Errorf("at the caller's deadline: %v", late)
	}
	wantError(t, late, "unhealthy: the time to start is over: health check s tried ")

	stopped := errors.New("stopped by hand")
	ctx2, cancel2 := context.WithCancelCause(t.Context())
	s = &script{steps: []func(context.Context) error{func(ctx context.Context) error {
		cancel2(stopped)
		return hang(ctx)
	}}}
	err := fast.Wait(ctx2, Target{}, s.spec("s"))
	if errors.Is(err, ErrUnhealthy) || !errors.Is(err, stopped) {
		t.Errorf("cancelled: %v", err)
	}
	wantError(t, err, "wait until healthy: stopped by hand: health check s tried once")
}

// A death ends the gate during a probe, during a pause, and after the probe
// that would have passed it. No time-out helps: they are an hour.
func TestGateGone(t *testing.T) {
	died := errors.New("exit status 1")
	for _, how := range []string{"Gone", "Alive", "both"} {
		for name, after := range map[string]func(context.Context) error{"probe": hang, "pause": fail, "pass": pass} {
			t.Run(how+" "+name, func(t *testing.T) {
				var dead atomic.Bool
				gone := make(chan struct{})
				target := Target{}
				if how != "Alive" {
					target.Gone = gone
				}
				if how != "Gone" {
					target.Alive = func() error {
						if dead.Load() {
							return died
						}
						return nil
					}
				}
				s := &script{steps: []func(context.Context) error{func(ctx context.Context) error {
					if dead.CompareAndSwap(false, true) {
						close(gone)
					}
					return after(ctx)
				}}}
				g := fast
				g.Interval = time.Hour
				err := g.Wait(t.Context(), target, s.spec("s"))
				if !errors.Is(err, ErrUnhealthy) || !errors.Is(err, ErrGone) {
					t.Fatalf("%v does not wrap ErrUnhealthy and ErrGone", err)
				}
				if how != "Gone" && !errors.Is(err, died) {
					t.Errorf("%v does not say how it died", err)
				}
				if n := s.tries.Load(); n != 1 {
					t.Errorf("%d tries of a dead generation", n)
				}
			})
		}
	}
}

func TestGateReady(t *testing.T) {
	ready := make(chan struct{})
	w := &waiting{ready: ready}
	close(ready)
	if stop := w.pause(t.Context(), time.Hour); stop != nil || w.ready != nil {
		t.Errorf("READY=1 does not end the pause: %v", stop)
	}

	ready = make(chan struct{})
	s := &script{steps: []func(context.Context) error{pass, func(context.Context) error {
		close(ready)
		return nil
	}}}
	if err := fast.Wait(t.Context(), Target{Ready: ready}, s.spec("s"), mustParse(t, "notify", Options{})); err != nil {
		t.Error(err)
	}
	if n := s.tries.Load(); n != 2 {
		t.Errorf("%d tries, want 2", n)
	}
}

// With the real thing: a server that is not there, then warms up, then serves.
func TestGateServer(t *testing.T) {
	var asked atomic.Int32
	srv := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) < 3 {
			http.Error(w, "warming up", http.StatusServiceUnavailable)
		}
	})
	target := Target{Addresses: []Address{address(srv)}}
	if err := fast.Wait(t.Context(), target, mustParse(t, "/", Options{}), mustParse(t, "tcp", Options{})); err != nil {
		t.Fatal(err)
	}
	g := fast
	g.Failures = 1
	err := g.Wait(t.Context(), target, mustParse(t, "tcp", Options{}), mustParse(t, "http://"+refused(t), Options{}))
	wantError(t, err, "health check http://127.0.0.1:", "tried 2 times", "connection refused")
}

func TestReadiness(t *testing.T) {
	var draining atomic.Bool
	h := Readiness(draining.Load)
	ask := func() *http.Response {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/", strings.NewReader("")))
		return w.Result()
	}
	if resp := ask(); resp.StatusCode != 200 || resp.Header.Get("Retry-After") != "" {
		t.Errorf("serving: %s %v", resp.Status, resp.Header)
	}
	draining.Store(true)
	if resp := ask(); resp.StatusCode != 503 || resp.Header.Get("Retry-After") != "1" {
		t.Errorf("draining: %s %v", resp.Status, resp.Header)
	}
}

func BenchmarkGate(b *testing.B) {
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer srv.Close()
	s := mustParse(b, "/", Options{})
	for b.Loop() {
		if err := (Gate{}).Wait(b.Context(), Target{Addresses: []Address{address(srv)}}, s); err != nil {
			b.Fatal(err)
		}
	}
}
