package httpdrain

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second // for what must happen; never the measure of anything

// fixture is a server under test.
type fixture struct {
	t      *testing.T
	d      *Drainer
	srv    *http.Server
	ln     net.Listener
	addr   string
	closed chan struct{}
	result chan error // of Serve
	report chan outcome
}

type outcome struct {
	Report
	err error
}

func serve(t *testing.T, srv *http.Server, with ...func(net.Listener) net.Listener) *fixture {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &fixture{t: t, srv: srv, addr: ln.Addr().String(), closed: make(chan struct{}),
		result: make(chan error, 1), report: make(chan outcome, 1)}
	for _, w := range with {
		ln = w(ln)
	}
	s.ln = ln
	s.d = New(srv, Options{})
	go func() { s.result <- s.d.Serve(ln) }()
	t.Cleanup(func() { srv.Close(); ln.Close() })
	return s
}

// drain begins a drain; the listener is closed at once.
func (s *fixture) drain(ctx context.Context, grace time.Duration) {
	s.t.Helper()
	go func() {
		r, err := s.d.Drain(ctx, s.closed, grace)
		s.report <- outcome{r, err}
	}()
	eventually(s.t, "the drain begins", s.d.announced.Load)
	s.closeListener()
}

func (s *fixture) closeListener() {
	s.ln.Close()
	close(s.closed)
}

func (s *fixture) drained() outcome {
	s.t.Helper()
	o := receive(s.t, "the end of the drain", s.report)
	if err := receive(s.t, "the end of Serve", s.result); err != nil {
		s.t.Errorf("Serve after a drain: %v", err)
	}
	if n := s.d.Counts().Open(); o.err == nil && n != 0 {
		s.t.Errorf("%d connections open after the drain", n)
	}
	return o
}

func (s *fixture) drainedWell() Report {
	s.t.Helper()
	o := s.drained()
	if o.err != nil || o.Cut != 0 {
		s.t.Errorf("drain: %+v, %v", o.Report, o.err)
	}
	return o.Report
}

func receive[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s in %v", what, patience)
	}
	panic("unreachable")
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in %v: %s", patience, what)
		}
	}
}

func limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// client is an HTTP/1 connection by hand.
type client struct {
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, addr string) *client {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &client{c, bufio.NewReader(c)}
}

// answer reads one; announced is whether it ends the connection.
func (c *client) answer() (body string, announced bool, err error) {
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return "", false, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), res.Close, err
}

func (c *client) send(s string) error {
	_, err := io.WriteString(c, s)
	return err
}

func (c *client) get(path string) (string, bool, error) {
	if err := c.send("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return "", false, err
	}
	return c.answer()
}

func (c *client) mustGet(t *testing.T, path string, announced bool) {
	t.Helper()
	switch _, a, err := c.get(path); {
	case err != nil:
		t.Fatalf("GET %s: %v", path, err)
	case a != announced:
		t.Fatalf("GET %s: Connection: close is %v, want %v", path, a, announced)
	}
}

func (c *client) mustEnd(t *testing.T) {
	t.Helper()
	if n, err := c.r.ReadByte(); err != io.EOF {
		t.Fatalf("after the last answer: %v, %v, want the end", n, err)
	}
}

var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	io.WriteString(w, "hello")
})

// gate is a handler that holds requests until it is opened.
type gate struct {
	entered chan struct{}
	open    chan struct{}
}

func newGate() *gate { return &gate{make(chan struct{}, 100), make(chan struct{})} }

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.entered <- struct{}{}
	select {
	case <-g.open:
	case <-time.After(patience):
	case <-r.Context().Done():
	}
	hello(w, r)
}

// slowOn holds /slow only.
func slowOn(g *gate) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/slow", g)
	mux.Handle("/", hello)
	return mux
}

// load has n clients post without pause until each was told to stop. It returns the
// number of answers and the requests that were lost.
func load(t *testing.T, addr string, n int, answers *atomic.Int64) (wait func() []error) {
	var mu sync.Mutex
	var lost []error
	var wg sync.WaitGroup
	for range n {
		c := dial(t, addr)
		wg.Go(func() {
			defer c.Close()
			for {
				err := c.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n12345")
				var announced bool
				if err == nil {
					_, announced, err = c.answer()
				}
				if err != nil {
					mu.Lock()
					lost = append(lost, err)
					mu.Unlock()
					return
				}
				answers.Add(1)
				if announced {
					return
				}
			}
		})
	}
	return func() []error { wg.Wait(); return lost }
}

func TestBusyKeepAliveLosesNothing(t *testing.T) {
	s := serve(t, &http.Server{Handler: hello})
	var answers atomic.Int64
	wait := load(t, s.addr, 16, &answers)
	eventually(t, "load", func() bool { return answers.Load() > 500 })
	s.drain(limit(t), time.Hour)
	if lost := wait(); len(lost) > 0 {
		t.Errorf("%d requests lost of %d: %v", len(lost), answers.Load(), lost[0])
	}
	r := s.drainedWell()
	if r.Finished != 16 {
		t.Errorf("finished %d connections, want 16", r.Finished)
	}
	t.Logf("%d answers, %+v", answers.Load(), r)
}

// The same load without the announcement: clients never stop, and are cut.
func TestControlWithoutAnnouncement(t *testing.T) {
	s := serve(t, &http.Server{Handler: hello})
	s.d.noAnnounce = true
	var answers atomic.Int64
	wait := load(t, s.addr, 16, &answers)
	eventually(t, "load", func() bool { return answers.Load() > 500 })
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	s.drain(ctx, 100*time.Millisecond)
	if lost := wait(); len(lost) == 0 {
		t.Error("no request was lost: the test cannot see loss")
	}
	s.drained()
}

// net/http's own Shutdown closes what is idle: the next request is lost.
func TestControlPlainShutdown(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: hello}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	c := dial(t, ln.Addr().String())
	c.mustGet(t, "/", false)
	if err := srv.Shutdown(limit(t)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.get("/"); err == nil {
		t.Error("answered after Shutdown: the test cannot see loss")
	}
	receive(t, "end of Serve", done)
}

// Clients of every kind at once: requests in pieces, pauses within and between them, with
// and without a body. Each goes on until it is told to stop.
func TestRandomClientsLoseNothing(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	s := serve(t, &http.Server{Handler: hello})
	var answers atomic.Int64
	var wg sync.WaitGroup
	for i := range 32 {
		c := dial(t, s.addr)
		rnd := rand.New(rand.NewPCG(uint64(seed), uint64(i)))
		pause := func() { time.Sleep(time.Duration(rnd.IntN(3000)) * time.Microsecond) }
		wg.Go(func() {
			defer c.Close()
			for announced := false; !announced; answers.Add(1) {
				pause()
				body := strings.Repeat("x", rnd.IntN(20000))
				request := fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
				for len(request) > 0 {
					n := min(len(request), 1+rnd.IntN(len(request)))
					if err := c.send(request[:n]); err != nil {
						t.Errorf("client %d: request lost: %v", i, err)
						return
					}
					if request = request[n:]; len(request) > 0 && rnd.IntN(4) == 0 {
						pause()
					}
				}
				var err error
				if _, announced, err = c.answer(); err != nil {
					t.Errorf("client %d: answer lost: %v", i, err)
					return
				}
			}
		})
	}
	eventually(t, "load", func() bool { return answers.Load() > 300 })
	s.drain(limit(t), time.Hour)
	wg.Wait()
	if r := s.drainedWell(); r.Finished != 32 {
		t.Errorf("%+v", r)
	}
}

func TestIdleConnectionsSendOneMore(t *testing.T) {
	s := serve(t, &http.Server{Handler: hello})
	var cs []*client
	for range 20 {
		c := dial(t, s.addr)
		c.mustGet(t, "/", false)
		cs = append(cs, c)
	}
	s.drain(limit(t), time.Hour)
	for _, c := range cs {
		c.mustGet(t, "/", true)
		c.mustEnd(t)
	}
	// The hour is not waited for, because nobody is idle any more.
	if r := s.drainedWell(); r.Finished != len(cs) {
		t.Errorf("finished %d, want %d", r.Finished, len(cs))
	}
}

func TestIdleConnectionIsClosedAfterTheGrace(t *testing.T) {
	s := serve(t, &http.Server{Handler: hello})
	c := dial(t, s.addr)
	c.mustGet(t, "/", false)
	s.drain(limit(t), 50*time.Millisecond)
	c.mustEnd(t)
	if r := s.drainedWell(); r.Total < 50*time.Millisecond {
		t.Errorf("closed after %v, before the grace was over", r.Total)
	}
}

// A request that began before the announcement is answered without it; the
// connection then has a grace of its own.
func TestSlowHandler(t *testing.T) {
	g := newGate()
	s := serve(t, &http.Server{Handler: slowOn(g)})
	c := dial(t, s.addr)
	if err := c.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	receive(t, "request", g.entered)
	s.drain(limit(t), time.Hour)
	close(g.open)
	if body, announced, err := c.answer(); err != nil || body != "hello" || announced {
		t.Fatalf("%q, %v, %v", body, announced, err)
	}
	c.mustGet(t, "/", true)
	c.mustEnd(t)
	s.drainedWell()
}

func TestSlowBodyAndSlowHeader(t *testing.T) {
	s := serve(t, &http.Server{Handler: hello})
	body, header, again := dial(t, s.addr), dial(t, s.addr), dial(t, s.addr)
	again.mustGet(t, "/", false)
	for c, part := range map[*client]string{
		body:   "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345",
		header: "GET / HT",
		again:  "GET / HT",
	} {
		if err := c.send(part); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "bytes are read", func() bool {
		ok := true
		s.d.mu.Lock()
		for tr := s.d.head.next; tr != &s.d.head; tr = tr.next {
			ok = ok && tr.read.Load() > tr.mark.Load()
		}
		s.d.mu.Unlock()
		return ok && s.d.Counts().Open() == 3 && s.d.Counts().Active == 1
	})
	s.drain(limit(t), 0)
	// Nothing of this is closed by the end of the grace: each has begun a request.
	run := run{d: s.d, start: time.Now().Add(-time.Hour)}
	if o := run.look(); o.waiting != 3 || !o.next.IsZero() {
		t.Errorf("the drain would not wait for all three: %+v", o)
	}
	body.send("67890")
	header.send("TP/1.1\r\nHost: x\r\n\r\n")
	again.send("TP/1.1\r\nHost: x\r\n\r\n")
	for _, c := range []*client{header, again} {
		if body, announced, err := c.answer(); err != nil || body != "hello" || !announced {
			t.Errorf("%q, %v, %v", body, announced, err)
		}
	}
	if got, _, err := body.answer(); err != nil || got != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	s.drainedWell()
}

func TestNewConnectionSendsItsRequest(t *testing.T) {
	s := serve(t, &http.Server{Handler: hello})
	c := dial(t, s.addr)
	eventually(t, "accepted", func() bool { return s.d.Counts().New == 1 })
	s.drain(limit(t), time.Hour)
	c.mustGet(t, "/", true)
	c.mustEnd(t)
	s.drainedWell()
}

func TestNewConnectionWithoutAByte(t *testing.T) {
	s := serve(t, &http.Server{Handler: hello})
	c := dial(t, s.addr)
	eventually(t, "accepted", func() bool { return s.d.Counts().New == 1 })
	s.drain(limit(t), 0)
	c.mustEnd(t)
	if r := s.drainedWell(); r.Total < minNew || r.Finished != 1 {
		t.Errorf("%+v", r)
	}
}

// A pipelined request, already in net/http's buffer when its connection becomes idle.
func TestPipelinedRequest(t *testing.T) {
	g := newGate()
	s := serve(t, &http.Server{Handler: slowOn(g)})
	c := dial(t, s.addr)
	c.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n")
	receive(t, "request", g.entered)
	s.drain(limit(t), time.Hour)
	close(g.open)
	for _, want := range []bool{false, true} {
		if body, announced, err := c.answer(); err != nil || body != "hello" || announced != want {
			t.Fatalf("%q, %v, %v", body, announced, err)
		}
	}
	c.mustEnd(t)
	s.drainedWell()
}

// A connection that Accept has taken from the kernel when the listener is closed, and
// that net/http has not heard of, is waited for.
func TestConnectionBetweenAcceptAndServer(t *testing.T) {
	l := &slowAccept{taken: make(chan struct{}), release: make(chan struct{})}
	s := serve(t, &http.Server{Handler: hello}, func(ln net.Listener) net.Listener { l.Listener = ln; return l })
	release := sync.OnceFunc(func() { close(l.release) })
	t.Cleanup(release)
	c := dial(t, s.addr)
	receive(t, "accept", l.taken)
	s.drain(limit(t), 0)
	// The drain looks again and again: it has not gone on to Shutdown, which would drop
	// the request.
	for range 3 {
		s.d.changed()
		eventually(t, "the drain looks again", func() bool { return len(s.d.wake) == 0 })
	}
	if !s.d.accepting() {
		t.Error("Serve has returned with a connection in Accept's hands")
	}
	release()
	c.mustGet(t, "/", true)
	s.drainedWell()
}

type slowAccept struct {
	net.Listener
	taken, release chan struct{}
	once           sync.Once
}

func (l *slowAccept) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.once.Do(func() { close(l.taken); <-l.release })
	}
	return c, err
}

func TestTheEndOfTheContextCuts(t *testing.T) {
	g := newGate()
	s := serve(t, &http.Server{Handler: slowOn(g)})
	idle, slow := dial(t, s.addr), dial(t, s.addr)
	idle.mustGet(t, "/", false)
	slow.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
	receive(t, "request", g.entered)
	told := make(chan struct{})
	s.srv.RegisterOnShutdown(func() { close(told) })
	ctx, cancel := context.WithCancel(context.Background())
	s.drain(ctx, time.Hour)
	cancel()
	o := s.drained()
	receive(t, "shutdown hook", told)
	if !errors.Is(o.err, ErrCut) || o.Cut != 1 || o.Finished != 1 {
		t.Errorf("%+v, %v, want one cut", o.Report, o.err)
	}
	if _, _, err := slow.answer(); err == nil {
		t.Error("the slow request was answered")
	}
}

func TestTheEndOfTheContextWithListenersOpen(t *testing.T) {
	s := serve(t, &http.Server{Handler: hello})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	o, err := s.d.Drain(ctx, s.closed, 0)
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrCut) {
		t.Errorf("%+v, %v", o, err)
	}
	if err := receive(t, "end of Serve", s.result); err != nil {
		t.Error(err)
	}
	if _, err := s.d.Drain(ctx, s.closed, 0); err == nil {
		t.Error("a second drain")
	}
}

func hijacker(ended chan<- net.Conn) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		rw.Flush()
		ended <- c
	})
}

const upgrade = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"

func TestHijacked(t *testing.T) {
	for _, how := range []string{"RegisterOnDrain", "RegisterOnShutdown", "cut"} {
		t.Run(how, func(t *testing.T) {
			conns := make(chan net.Conn, 1)
			s := serve(t, &http.Server{Handler: hijacker(conns)})
			c := dial(t, s.addr)
			c.send(upgrade)
			if res, err := http.ReadResponse(c.r, nil); err != nil || res.StatusCode != 101 {
				t.Fatalf("%v, %v", res, err)
			}
			hijacked := receive(t, "hijack", conns)
			told := make(chan struct{})
			tell := func() { close(told); hijacked.Close() }
			ctx := limit(t)
			switch how {
			case "RegisterOnDrain":
				s.d.RegisterOnDrain(tell)
			case "RegisterOnShutdown":
				s.srv.RegisterOnShutdown(tell)
			case "cut":
				var cancel context.CancelFunc
				ctx, cancel = context.WithCancel(ctx)
				s.srv.RegisterOnShutdown(cancel)
			}
			if n := s.d.Counts(); n != (Counts{Hijacked: 1}) {
				t.Errorf("%+v", n)
			}
			s.drain(ctx, 0)
			o := s.drained()
			if o.Hijacked != 1 {
				t.Errorf("%+v", o.Report)
			}
			if how == "cut" {
				if o.Cut != 1 || !errors.Is(o.err, ErrCut) {
					t.Errorf("%+v, %v", o.Report, o.err)
				}
			} else {
				receive(t, "hook", told)
				if o.err != nil || o.Finished != 1 {
					t.Errorf("%+v, %v", o.Report, o.err)
				}
			}
			c.mustEnd(t)
		})
	}
}

// An answer that changes the protocol keeps its own Connection header.
func TestUpgradeIsNotAnnounced(t *testing.T) {
	conns := make(chan net.Conn, 1)
	s := serve(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := w.Header()["Connection"]; got != nil {
			t.Errorf("Connection: %q", got)
		}
		hijacker(conns).ServeHTTP(w, r)
	})})
	s.d.Announce()
	c := dial(t, s.addr)
	c.send(upgrade)
	receive(t, "hijack", conns).Close()
	s.drain(limit(t), 0)
	s.drainedWell()
}

func TestTheUsersHooksRun(t *testing.T) {
	var states sync.Map
	var shutdown = make(chan struct{})
	var bad atomic.Int64
	type key struct{}
	check := func(c any, ok bool) {
		if !ok {
			t.Errorf("hook got a %T", c)
			bad.Add(1)
		}
	}
	srv := &http.Server{
		ConnState: func(c net.Conn, st http.ConnState) {
			_, ok := c.(*net.TCPConn)
			check(c, ok)
			states.Store(st, true)
		},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			_, ok := c.(*net.TCPConn)
			check(c, ok)
			return context.WithValue(ctx, key{}, ctx.Value(key{}).(string)+" conn")
		},
		BaseContext: func(ln net.Listener) context.Context {
			_, ok := ln.(*net.TCPListener)
			check(ln, ok)
			return context.WithValue(context.Background(), key{}, "base")
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, r.Context().Value(key{}))
			w.(http.Flusher).Flush()
		}),
	}
	srv.RegisterOnShutdown(func() { close(shutdown) })
	s := serve(t, srv)
	c := dial(t, s.addr)
	if body, _, err := c.get("/"); err != nil || body != "base conn" {
		t.Errorf("%q, %v", body, err)
	}
	s.drain(limit(t), time.Hour)
	c.mustGet(t, "/", true)
	s.drainedWell()
	receive(t, "shutdown hook", shutdown)
	for _, st := range []http.ConnState{http.StateNew, http.StateActive, http.StateIdle, http.StateClosed} {
		if _, ok := states.Load(st); !ok {
			t.Errorf("%v was not told", st)
		}
	}
}

func TestOtherListeners(t *testing.T) {
	t.Run("custom connection", func(t *testing.T) {
		s := serve(t, &http.Server{Handler: hello}, func(ln net.Listener) net.Listener { return customListener{ln} })
		exchange(t, s, dial(t, s.addr))
	})
	t.Run("unix", func(t *testing.T) {
		dir, err := os.MkdirTemp("", "drain") // short: a socket's path is limited
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		path := dir + "/s"
		s := serve(t, &http.Server{Handler: hello}, func(ln net.Listener) net.Listener {
			ln.Close()
			u, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			return u
		})
		nc, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		exchange(t, s, &client{nc, bufio.NewReader(nc)})
	})
}

func exchange(t *testing.T, s *fixture, c *client) {
	t.Helper()
	c.mustGet(t, "/", false)
	s.drain(limit(t), time.Hour)
	c.mustGet(t, "/", true)
	c.mustEnd(t)
	s.drainedWell()
}

type customListener struct{ net.Listener }

func (l customListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return struct{ net.Conn }{c}, nil
}

// Bytes that net/http has not seen, or has seen and not told of, keep a connection from
// being closed.
func TestQuiet(t *testing.T) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cl := dial(t, ln.Addr().String())
	sv, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer sv.Close()
	d := New(&http.Server{}, Options{})
	w := d.wrap(sv)
	tr := w.(wrapped).tracked()
	now := time.Now()
	r := run{d: d, start: now.Add(-time.Hour)}
	judge := func() verdict {
		v, _ := r.judge(tr, now)
		return v
	}

	if judge() != over || !tr.quiet(now) {
		t.Error("nothing was sent, and it is not quiet")
	}
	cl.send("x")
	eventually(t, "the byte is there", func() bool { return unread(sv) })
	if judge() != over || tr.quiet(now) {
		t.Error("a byte is unread, and it is quiet")
	}
	if !tr.unfinished() {
		t.Error("a byte is unread, and nothing is lost by closing")
	}
	if o := r.look(); o.waiting != 1 || o.next.IsZero() || tr.ended {
		t.Errorf("a byte is unread: %+v, closed %v", o, tr.ended)
	}
	tr.busySince = time.Time{}
	// A reader that has the byte in its hands, but has not accounted for it.
	var b [1]byte
	if _, err := sv.Read(b[:]); err != nil {
		t.Fatal(err)
	}
	if _, known := received(sv); known != (runtime.GOOS == "linux") {
		t.Errorf("received is known: %v", known)
	} else if known && tr.quiet(now) {
		t.Error("a byte is in a reader's hands, and it is quiet")
	}
	tr.got(b[:])
	if judge() != served {
		t.Error("a request has begun, and it may be closed")
	}
	tr.mark.Store(1)
	tr.state.Store(stateIdle)
	if judge() != over || !tr.quiet(now) {
		t.Error("idle, and it is not quiet")
	}
	tr.state.Store(stateActive)
	if o := r.look(); o.waiting != 1 || !o.next.IsZero() || tr.ended {
		t.Errorf("active: %+v, closed %v", o, tr.ended)
	}
	if judge() != served || tr.quiet(now) {
		t.Error("active, and it is quiet")
	}
	tr.state.Store(stateIdle)
	r.look()
	if !tr.ended {
		t.Error("idle beyond its grace, and it is open")
	}
	cl.mustEnd(t)
}

// Report and log how long a drain takes beyond the last answer; Shutdown alone polls,
// with steps of up to 500 ms.
func TestDrainEndsWithTheLastAnswer(t *testing.T) {
	g := newGate()
	s := serve(t, &http.Server{Handler: g})
	var wg sync.WaitGroup
	for range 4 {
		c := dial(t, s.addr)
		wg.Go(func() {
			c.send("GET / HTTP/1.0\r\n\r\n")
			if body, _, err := c.answer(); err != nil || body != "hello" {
				t.Errorf("%q, %v", body, err)
			}
		})
		receive(t, "request", g.entered)
	}
	s.drain(limit(t), time.Hour)
	begin := time.Now()
	close(g.open)
	r := s.drainedWell()
	t.Logf("%v after the answer: %+v", time.Since(begin), r)
	wg.Wait()
}
