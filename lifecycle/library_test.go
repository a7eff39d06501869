package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"overlap/health"
	"overlap/lifecycle"
	"overlap/lifecycle/internal/trial"
)

// A server that uses the library is this long.
func ExampleListenAndServe() {
	srv := &http.Server{Addr: ":8080", Handler: http.FileServer(http.Dir("."))}
	if err := lifecycle.ListenAndServe(srv); err != nil {
		log.Fatal(err)
	}
}

// With a generation of its own a program has a say in what happens.
func Example() {
	dir, err := os.MkdirTemp("", "overlap")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	g, err := lifecycle.New(lifecycle.Options{
		Name: "hello", StateDir: dir, NoSignals: true, IdleGrace: 100 * time.Millisecond,
		Logger:     slog.New(slog.DiscardHandler),
		OnDrain:    func() { fmt.Println("draining") },
		AfterDrain: func(r lifecycle.Report) { fmt.Println("cut:", r.Cut) },
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	ln, err := g.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	g.HTTP(&http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "hello from generation", g.Number())
		g.Stop() // what SIGTERM does
	})}, ln)

	answer := make(chan string)
	go func() {
		// The connection waits until the generation has proved itself and serves.
		resp, err := http.Get("http://" + ln.Addr().String())
		if err != nil {
			log.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		answer <- string(body)
	}()
	if err := g.Run(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println(g.State())
	fmt.Print(<-answer)
	// Output:
	// draining
	// cut: 0
	// ended
	// hello from generation 1
}

// embedded is a generation in the test's own process.
type embedded struct {
	*lifecycle.Generation
	addr string
	ran  chan error
}

func embed(t *testing.T, o lifecycle.Options) *embedded {
	t.Helper()
	o.Name, o.StateDir, o.NoSignals = "embedded", t.TempDir(), true
	o.Logger = slog.New(slog.DiscardHandler)
	g, err := lifecycle.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return &embedded{Generation: g, ran: make(chan error, 1)}
}

func (e *embedded) listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := e.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e.addr = ln.Addr().String()
	return ln
}

// run serves, and waits until the generation does.
func (e *embedded) run(t *testing.T, ctx context.Context, srv *http.Server) {
	t.Helper()
	e.HTTP(srv, e.listen(t))
	go func() { e.ran <- e.Run(ctx) }()
	eventually(t, func() error {
		if s := e.State(); s != lifecycle.Serving {
			return fmt.Errorf("state %s", s)
		}
		return nil
	})
}

// get returns the status of a request on a connection of its own.
func (e *embedded) get(path string) (int, error) {
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Get("http://" + e.addr + path)
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	return resp.StatusCode, nil
}

func TestLifeOfAGeneration(t *testing.T) {
	needLinux(t)
	var heard []string
	say := func(what string) { heard = append(heard, what) } // all from Run's goroutine
	e := embed(t, lifecycle.Options{IdleGrace: -1,
		BeforeReady: func() error { say("before ready"); return nil },
		OnDrain:     func() { say("drain") },
		AfterDrain: func(r lifecycle.Report) {
			say("after drain")
			if r.Handover || r.Total <= 0 {
				t.Errorf("report %+v", r)
			}
		}})
	if e.State() != lifecycle.Starting || e.Number() != 0 {
		t.Errorf("state %s, number %d before anything", e.State(), e.Number())
	}
	if err := e.Reload(context.Background()); err == nil {
		t.Error("a generation that does not run was reloaded")
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	e.run(t, ctx, &http.Server{Handler: http.NotFoundHandler()})
	if e.Number() != 1 {
		t.Errorf("number %d, want 1", e.Number())
	}
	select {
	case <-e.Draining():
		t.Error("it drains")
	default:
	}
	if err := e.Run(ctx); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a second Run: %v", err)
	}
	if err := e.Close(); err != nil { // of no effect while it runs
		t.Error(err)
	}
	if code, err := e.get("/"); code != http.StatusNotFound || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	stop()
	if err := <-e.ran; err != nil {
		t.Errorf("Run: %v", err)
	}
	<-e.Draining()
	if e.State() != lifecycle.Ended {
		t.Errorf("state %s at the end", e.State())
	}
	if want := []string{"before ready", "drain", "after drain"}; !slices.Equal(heard, want) {
		t.Errorf("hooks %v, want %v", heard, want)
	}
	if err := e.Run(ctx); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Run after the end: %v", err)
	}
	if _, err := e.get("/"); err == nil {
		t.Error("it answers after the end")
	}
}

// TestReadiness: before a stop, load balancers see 503 while the server still accepts.
func TestReadiness(t *testing.T) {
	needLinux(t)
	t.Parallel()
	s, p, first := startWith(t, config{Listen: []string{"tcp 127.0.0.1:0"}, Delay: time.Minute, Drain: 2 * time.Minute, Grace: -1})
	tr := &http.Transport{DisableKeepAlives: true}
	readiness := func() (int, error) {
		resp, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Get("http://" + s.address(0) + "/healthz")
		if err != nil {
			return 0, err
		}
		resp.Body.Close()
		return resp.StatusCode, nil
	}
	if code, err := readiness(); code != http.StatusOK || err != nil {
		t.Errorf("readiness %d, %v while serving", code, err)
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	eventually(t, func() error {
		if code, err := readiness(); code != http.StatusServiceUnavailable || err != nil {
			return fmt.Errorf("readiness %d, %w during the delay", code, err)
		}
		return nil
	})
	s.mustAsk(first.Generation)
	if r, err := s.status(first.Generation); err != nil || r.State != lifecycle.Serving {
		t.Errorf("%+v, %v: it should serve during the delay", r, err)
	}
	s.signalAgain(p) // cuts the delay short, and there is nothing else to cut
	if code := p.code(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestStopMeetsSwitch: a newer generation that switches while the old one's stop is delayed keeps its clients when that
// ends.
func TestStopMeetsSwitch(t *testing.T) {
	needLinux(t)
	t.Parallel()
	s, p, first := startWith(t, config{Listen: []string{"tcp 127.0.0.1:0"}, Delay: time.Second, Drain: time.Minute, Grace: -1})
	p.cmd.Process.Signal(syscall.SIGTERM)
	s.start()
	next := s.serving(first.Generation)
	select {
	case <-p.done:
		t.Fatal("the old one ended before the new one served")
	default:
	}
	if code := p.code(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for range 50 { // half of them would wait for ever at a placeholder
		s.mustAsk(next.Generation)
	}
}

// TestClose: a generation that is given up leaves nothing and can't be used.
func TestClose(t *testing.T) {
	needLinux(t)
	e := embed(t, lifecycle.Options{})
	ln := e.listen(t)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
	if _, err := e.Listen(context.Background(), "tcp", "127.0.0.1:0"); !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
		t.Errorf("listen: %v", err)
	}
	if _, err := e.ListenPacket(context.Background(), "udp", "127.0.0.1:0"); !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
		t.Errorf("listen on a packet socket: %v", err)
	}
	if err := e.Run(context.Background()); !errors.Is(err, os.ErrClosed) {
		t.Errorf("run: %v", err)
	}
	if err := e.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	unused := embed(t, lifecycle.Options{})
	if err := unused.Close(); err != nil {
		t.Error(err)
	}
	if _, err := unused.Listen(context.Background(), "tcp", "127.0.0.1:0"); !errors.Is(err, os.ErrClosed) {
		t.Errorf("listen: %v", err)
	}
}

// TestStopWhileStarting: a generation that is told to stop before it served says so.
func TestStopWhileStarting(t *testing.T) {
	needLinux(t)
	for how, stop := range map[string]func(*embedded, context.CancelFunc){
		"Stop":    func(e *embedded, _ context.CancelFunc) { e.Stop() },
		"context": func(_ *embedded, cancel context.CancelFunc) { cancel() },
	} {
		t.Run(how, func(t *testing.T) {
			never, err := health.Parse("/never", health.Options{})
			if err != nil {
				t.Fatal(err)
			}
			asked := make(chan struct{}, 100)
			e := embed(t, lifecycle.Options{Probes: []health.Spec{never}})
			e.HTTP(&http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(http.StatusServiceUnavailable)
				select {
				case asked <- struct{}{}:
				default:
				}
			})}, e.listen(t))
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			go func() { e.ran <- e.Run(ctx) }()
			<-asked
			stop(e, cancel)
			if err := <-e.ran; err == nil || errors.Is(err, lifecycle.ErrUnhealthy) {
				t.Errorf("Run: %v", err)
			}
			if e.State() != lifecycle.Ended {
				t.Errorf("state %s", e.State())
			}
		})
	}
}

// TestStopAtTheSwitch: a word to stop that comes too late for the start ends the generation
// that serves, and is not lost.
func TestStopAtTheSwitch(t *testing.T) {
	needLinux(t)
	defer func() { trial.Step = nil }()
	for _, step := range []string{"healthy", "switched", "recorded", "told"} {
		e := embed(t, lifecycle.Options{IdleGrace: -1})
		trial.Step = func(at string) {
			if at == step {
				e.Stop()
			}
		}
		e.HTTP(&http.Server{Handler: http.NotFoundHandler()}, e.listen(t))
		go func() { e.ran <- e.Run(context.Background()) }()
		select {
		case err := <-e.ran:
			if err != nil && step != "healthy" {
				t.Errorf("stopped at %q: %v", step, err)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("told to stop at %q, it went on", step)
		}
	}
}

// TestOptions: what can't be meant is refused before anything is touched.
func TestOptions(t *testing.T) {
	for _, name := range []string{"Upper", "-", "a/b", "..", string(make([]byte, 60))} {
		if _, err := lifecycle.New(lifecycle.Options{Name: name, StateDir: t.TempDir()}); err == nil {
			t.Errorf("the name %q was taken", name)
		}
	}
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := lifecycle.New(lifecycle.Options{StateDir: file}); err == nil {
		t.Error("a file was taken for a state directory")
	}
}

// TestTrafficComesAfterTheCheck: a client that connects while the generation starts waits, and is
// answered after the switch.
func TestTrafficComesAfterTheCheck(t *testing.T) {
	needLinux(t)
	ready := make(chan struct{})
	e := embed(t, lifecycle.Options{IdleGrace: -1, BeforeReady: func() error { <-ready; return nil }})
	var states []lifecycle.State
	e.HTTP(&http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { states = append(states, e.State()) })}, e.listen(t))
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() { e.ran <- e.Run(ctx) }()
	early, err := net.DialTimeout("tcp", e.addr, 50*time.Millisecond)
	if err == nil {
		early.Close()
		t.Error("a client reached a generation that was starting")
	}
	close(ready)
	if code, err := e.get("/"); code != http.StatusOK || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	stop()
	if err := <-e.ran; err != nil {
		t.Error(err)
	}
	if !slices.Equal(states, []lifecycle.State{lifecycle.Serving}) {
		t.Errorf("answered while %v", states)
	}
}
