package httpdrain

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"overlap/lifecycle/internal/trial"
)

// Options of a [Drainer]. The zero value is useful.
type Options struct {
	// Logger gets a line for each step of a drain; nil logs nothing.
	Logger *slog.Logger
}

// Counts says how many connections are in which state. A connection that waits for
// the rest of a request's header counts as idle, or new, as net/http has it.
type Counts struct {
	New, Active, Idle, Hijacked int
}

// Open is the sum of all states.
func (c Counts) Open() int { return c.New + c.Active + c.Idle + c.Hijacked }

// Drainer serves with an [http.Server] and ends it without losing a request. All
// methods may be called from several goroutines. Make one with [New].
type Drainer struct {
	srv   *http.Server
	log   *slog.Logger
	epoch time.Time

	userConnState func(net.Conn, http.ConnState)

	announced atomic.Bool
	draining  atomic.Bool
	wake      chan struct{} // one token: something has changed

	unwrapped sync.Map // net.Conn → *track, for connections that could not be wrapped

	mu        sync.Mutex
	head      track // ring of open connections
	listeners map[*listener]struct{}
	onDrain   []func()
	start     time.Time // of the drain
	frozen    bool      // the cut was made: nothing counts as finished any more
	finished  int
	hijacked  int

	noAnnounce bool // tests only: the negative control
}

// New makes a Drainer for srv, whose fields must be set by then and not be changed
// afterwards. It wraps srv.Handler and the hooks ConnState, ConnContext and BaseContext;
// the user's own run as before, with the connection and the listener as they were
// given, and so does what RegisterOnShutdown registered. A nil Handler is [http.DefaultServeMux].
//
// What [http.Hijacker] returns is a wrapper that embeds the *net.TCPConn (or
// *net.UnixConn), not that type itself.
func New(srv *http.Server, o Options) *Drainer {
	d := &Drainer{
		srv:           srv,
		log:           o.Logger,
		epoch:         time.Now(),
		userConnState: srv.ConnState,
		wake:          make(chan struct{}, 1),
		listeners:     make(map[*listener]struct{}),
		noAnnounce:    trial.AnnounceOff,
	}
	d.head.prev, d.head.next = &d.head, &d.head
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	next := srv.Handler
	if next == nil {
		next = http.DefaultServeMux
	}
	srv.Handler = &handler{d: d, next: next}
	srv.ConnState = d.connState
	if cc := srv.ConnContext; cc != nil {
		srv.ConnContext = func(ctx context.Context, nc net.Conn) context.Context {
			return cc(ctx, unwrap(nc))
		}
	}
	if bc := srv.BaseContext; bc != nil {
		srv.BaseContext = func(ln net.Listener) context.Context {
			if l, ok := ln.(*listener); ok {
				ln = l.Listener
			}
			return bc(ln)
		}
	}
	return d
}

// Serve accepts from ln and serves until ln is closed, as [http.Server.Serve] does. It
// may be called for several listeners at once. It returns nil when a drain closed
// ln, that is, when ln was closed after [Drainer.Drain] or [Drainer.Announce] was
// called; its connections are served on.
//
// A listener that gives out *tls.Conn works, but hijacked connections of it can not
// be waited for; [Drainer.ServeTLS] has no such limit.
func (d *Drainer) Serve(ln net.Listener) error {
	return d.serve(ln, d.srv.Serve)
}

// ServeTLS is Serve for TLS; cert and key are files and may be empty, as for
// [http.Server.ServeTLS].
func (d *Drainer) ServeTLS(ln net.Listener, cert, key string) error {
	return d.serve(ln, func(ln net.Listener) error { return d.srv.ServeTLS(ln, cert, key) })
}

func (d *Drainer) serve(ln net.Listener, serve func(net.Listener) error) error {
	l := &listener{Listener: ln, d: d}
	d.mu.Lock()
	d.listeners[l] = struct{}{}
	d.mu.Unlock()

	// When serve returns, each connection that it accepted has been in the ConnState
	// hook: the drain waits for this, or it would miss the last one.
	err := serve(l)

	d.mu.Lock()
	delete(d.listeners, l)
	d.mu.Unlock()
	d.changed()
	if d.announced.Load() && (errors.Is(err, net.ErrClosed) || errors.Is(err, http.ErrServerClosed)) {
		return nil
	}
	return err
}

// Announce tells clients from now on that their connection will end: each HTTP/1
// answer carries "Connection: close", and HTTP/2 gets GOAWAY after its answer. An
// answer to a request with an Upgrade header is left alone, since its Connection
// header is the handler's business. Nothing is closed that would not close by this.
func (d *Drainer) Announce() { d.announced.Store(true) }

// Resume takes [Drainer.Announce] back: the server goes on. It is too late for it once
// [Drainer.Drain] was called.
func (d *Drainer) Resume() { d.announced.Store(false) }

// RegisterOnDrain has f called, in a goroutine of its own, when a drain begins, or at
// once if it has begun. It is the place to tell hijacked connections to end; f need
// not wait for them.
func (d *Drainer) RegisterOnDrain(f func()) {
	d.mu.Lock()
	begun := !d.start.IsZero()
	if !begun {
		d.onDrain = append(d.onDrain, f)
	}
	d.mu.Unlock()
	if begun {
		go f()
	}
}

// Counts walks the open connections: microseconds for a thousand of them.
func (d *Drainer) Counts() Counts {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.countsLocked()
}

func (d *Drainer) countsLocked() (c Counts) {
	for t := d.head.next; t != &d.head; t = t.next {
		switch t.state.Load() {
		case stateNew:
			c.New++
		case stateActive:
			c.Active++
		case stateIdle:
			c.Idle++
		case stateHijacked:
			c.Hijacked++
		}
	}
	return c
}

// handler announces. It looks when a request begins only: a request that began before
// the announcement leaves an idle connection behind, which has a grace.
type handler struct {
	d    *Drainer
	next http.Handler
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.d.announced.Load() && !h.d.noAnnounce && !upgrades(r) {
		w.Header().Set("Connection", "close")
	}
	h.next.ServeHTTP(w, r)
}

// upgrades tells whether r asks for another protocol. (h2c is asked for by clients that
// are content with HTTP/1, and net/http never agrees to it.)
func upgrades(r *http.Request) bool {
	up := r.Header["Upgrade"]
	return len(up) > 0 && !strings.EqualFold(up[0], "h2c")
}

// connState is the server's ConnState hook. The user's own runs before the end of a
// connection is noted, so that a drain does not return before the hook has heard of it.
func (d *Drainer) connState(nc net.Conn, s http.ConnState) {
	if s == http.StateClosed {
		defer d.note(nc, s)
	} else {
		d.note(nc, s)
	}
	if d.userConnState != nil {
		d.userConnState(unwrap(nc), s)
	}
}

func (d *Drainer) note(nc net.Conn, s http.ConnState) {
	if t := d.trackOf(nc); t != nil {
		d.move(t, nc, s)
	} else if s == http.StateNew {
		t = &track{raw: nc}
		if c, ok := nc.(*tls.Conn); ok {
			t.raw = c.NetConn()
			t.tls.Store(c)
		}
		d.unwrapped.Store(nc, t)
		d.remember(t)
	}
}

func (d *Drainer) move(t *track, nc net.Conn, s http.ConnState) {
	switch s {
	case http.StateNew:
		if c, ok := nc.(*tls.Conn); ok {
			t.tls.Store(c)
		}
	case http.StateActive:
		t.state.Store(stateActive)
	case http.StateIdle:
		t.mark.Store(t.read.Load())
		if d.draining.Load() {
			t.since.Store(int64(time.Since(d.epoch)))
		}
		t.state.Store(stateIdle)
	case http.StateHijacked:
		d.noteHijack(t, nc)
	case http.StateClosed:
		d.unwrappedDelete(t, nc)
		d.forget(t)
	}
	if d.draining.Load() {
		d.changed()
	}
}

func (d *Drainer) noteHijack(t *track, nc net.Conn) {
	t.state.Store(stateHijacked)
	if d.draining.Load() {
		d.mu.Lock()
		d.hijacked++
		d.mu.Unlock()
	}
	if !t.counted { // its Close will not be seen
		d.unwrappedDelete(t, nc)
		d.forget(t)
	}
}

func (d *Drainer) unwrappedDelete(t *track, nc net.Conn) {
	if !t.counted {
		d.unwrapped.Delete(nc)
	}
}

// remember puts a new connection on the ring.
func (d *Drainer) remember(t *track) {
	t.d = d
	if d.draining.Load() {
		t.since.Store(int64(time.Since(d.epoch)))
	}
	d.mu.Lock()
	t.prev, t.next = d.head.prev, &d.head
	t.prev.next, t.next.prev = t, t
	t.linked = true
	d.mu.Unlock()
}

// forget takes a connection off the ring, once.
func (d *Drainer) forget(t *track) {
	d.mu.Lock()
	if t.linked {
		t.prev.next, t.next.prev = t.next, t.prev
		t.prev, t.next, t.linked = nil, nil, false
		if !d.start.IsZero() && !d.frozen {
			d.finished++
		}
	}
	d.mu.Unlock()
	if d.draining.Load() {
		d.changed()
	}
}

// changed wakes the drain.
func (d *Drainer) changed() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}
