package httpdrain

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// ErrCut is returned, wrapped, by [Drainer.Drain] when its context ended with requests
// or hijacked connections unfinished; [Report.Cut] says how many.
var ErrCut = errors.New("connections were cut")

const (
	// minNew is the least time that a connection without a byte is given, and
	// likewise a TLS connection between handshake and request, which nobody can tell
	// from one within the handshake.
	minNew = time.Second
	// minIdle is the least grace of an idle connection: net/http tells that a connection
	// is idle before it looks whether a pipelined request is in its buffer already.
	minIdle = 5 * time.Millisecond
	// settle is how long an HTTP/2 connection without a stream must have been silent
	// before GOAWAY: a frame that was read may be the start of a request.
	settle = 20 * time.Millisecond
	// recheck is how soon a connection is looked at again whose bytes are on their way
	// to net/http; normally the ConnState hook comes first.
	recheck = 2 * time.Millisecond
	// maxBusy is how long the kernel's count of received bytes may differ from what
	// was read before it is taken for a miscount: bytes read by whoever accepted the
	// connection.
	maxBusy = time.Second
)

// Report tells what a drain did. Durations are zero for a step that was not reached.
type Report struct {
	Finished int // connections that ended, or were closed idle, with nothing lost
	Cut      int // connections closed with a request, or a hijacked exchange, unfinished
	Hijacked int // hijacked connections seen, open at the start or later; part of the others

	Listeners time.Duration // from the start until the caller had closed the listeners
	Requests  time.Duration // from the start until nothing but HTTP/2 without streams and hijacked was left
	Shutdown  time.Duration // what http.Server.Shutdown and the end of HTTP/2 connections took
	Hijack    time.Duration // waiting for hijacked connections after that
	Total     time.Duration
}

// Drain ends the server: it announces the end, goes on serving until closed is closed,
// which the caller does once all listeners are closed, lets requests finish and idle
// connections send one more within grace (from the start of the drain, or from when
// they became idle), and then shuts the server down. A negative grace counts as 0, and 0 as the 5 ms that
// net/http needs to find a pipelined request. Each
// connection that was accepted and has not sent anything has grace too, but one second
// at least. It returns as soon as nothing is left.
//
// When ctx ends, what is open is cut with [http.Server.Close] and the error wraps
// ErrCut, if a request or a hijacked connection was lost by it; if the listeners were
// still open, the error wraps the cause of ctx.
//
// Drain can be called once; a second call is an error at once.
func (d *Drainer) Drain(ctx context.Context, closed <-chan struct{}, grace time.Duration) (Report, error) {
	r := run{d: d, grace: max(grace, 0), closed: closed}
	if !r.begin() {
		return Report{}, errors.New("drain http server: it is being drained already")
	}
	err := r.requests(ctx)
	if err == nil {
		err = r.shutdown(ctx)
	}
	if err == nil {
		err = r.hijacked(ctx)
	}
	if err != nil {
		err = r.cut(ctx)
	}
	return r.finish(), err
}

// run is one drain. Its methods are the steps in their order.
type run struct {
	d      *Drainer
	grace  time.Duration
	closed <-chan struct{} // nil once it was seen closed
	start  time.Time
	report Report
	scan   time.Duration // what the last look at the connections took
}

func (r *run) begin() bool {
	d := r.d
	d.mu.Lock()
	if !d.start.IsZero() {
		d.mu.Unlock()
		return false
	}
	r.start = time.Now()
	d.start = r.start
	d.draining.Store(true)
	counts := d.countsLocked()
	d.hijacked = counts.Hijacked
	hooks := d.onDrain
	d.mu.Unlock()

	d.Announce()
	for _, f := range hooks {
		go f()
	}
	d.log.Info("drain begins", "new", counts.New, "active", counts.Active,
		"idle", counts.Idle, "hijacked", counts.Hijacked, "grace", r.grace)
	return true
}

// requests waits until the listeners are closed and no HTTP/1 connection is left, and
// no HTTP/2 connection has a stream or a grace.
func (r *run) requests(ctx context.Context) error {
	for {
		// In this order: once nobody accepts, no look can miss a connection.
		accepting := r.closed != nil || r.d.accepting()
		l := r.look()
		if !accepting && l.waiting == 0 {
			r.report.Requests = time.Since(r.start)
			return nil
		}
		if err := r.wait(ctx, l.next); err != nil {
			return err
		}
	}
}

// shutdown calls http.Server.Shutdown, which has nothing to do unless there are HTTP/2
// connections: these get GOAWAY, and their end is waited for without its polling.
func (r *run) shutdown(ctx context.Context) error {
	begin := time.Now()
	sctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- r.d.srv.Shutdown(sctx) }()
	for {
		c := r.d.Counts()
		if c.Open() == c.Hijacked {
			break
		}
		if err := r.wait(ctx, time.Time{}); err != nil {
			cancel()
			<-done
			return err
		}
	}
	// The ConnState hook tells of a closed connection after the server has forgotten
	// it, so a first look of Shutdown would find none; a later one need not be awaited.
	quick := time.NewTimer(recheck)
	defer quick.Stop()
	select {
	case <-done:
	case <-quick.C:
		cancel()
		<-done
	}
	r.report.Shutdown = time.Since(begin)
	return nil
}

// hijacked waits for the hijacked connections.
func (r *run) hijacked(ctx context.Context) error {
	begin := time.Now()
	for r.d.Counts().Hijacked > 0 {
		if err := r.wait(ctx, time.Time{}); err != nil {
			return err
		}
	}
	r.report.Hijack = time.Since(begin)
	return nil
}

// cut closes all that is left and says what was lost by it.
func (r *run) cut(ctx context.Context) error {
	d := r.d
	var left []*track
	d.mu.Lock()
	d.frozen = true
	for t := d.head.next; t != &d.head; t = t.next {
		if t.unfinished() {
			r.report.Cut++
		} else {
			d.finished++
		}
		if t.state.Load() == stateHijacked {
			left = append(left, t)
		}
	}
	d.mu.Unlock()

	// Shutdown, which does not wait here, runs the hooks of RegisterOnShutdown. What the
	// two return is about ctx, and about listeners, which may be closed by now.
	d.srv.Shutdown(ctx)
	d.srv.Close()
	for _, t := range left {
		t.close()
	}
	switch {
	case r.report.Cut > 0:
		return fmt.Errorf("drain http server: %w: %d of them, when time ran out", ErrCut, r.report.Cut)
	case r.closed != nil:
		return fmt.Errorf("drain http server: listeners were still open when time ran out: %w", context.Cause(ctx))
	}
	return nil
}

func (r *run) finish() Report {
	r.d.mu.Lock()
	r.report.Finished = r.d.finished
	r.report.Hijacked = r.d.hijacked
	r.d.mu.Unlock()
	r.report.Total = time.Since(r.start)
	r.d.log.Info("drain done", "finished", r.report.Finished, "cut", r.report.Cut,
		"hijacked", r.report.Hijacked, "total", r.report.Total)
	return r.report
}

// wait returns when something has changed, at next (unless that is zero), or with an
// error when ctx has ended. Between two looks it leaves four times as long as the
// last look took, up to 5 ms, so that many connections that end one by one do not
// cost more than they are worth.
func (r *run) wait(ctx context.Context, next time.Time) error {
	var alarm <-chan time.Time
	if !next.IsZero() {
		timer := time.NewTimer(max(time.Until(next), 0))
		defer timer.Stop()
		alarm = timer.C
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-r.closed:
		r.closed = nil
		r.report.Listeners = time.Since(r.start)
		r.d.closeListeners()
		r.d.log.Info("listeners closed", "after", r.report.Listeners)
	case <-alarm:
	case <-r.d.wake:
		if pause := min(4*r.scan, 5*time.Millisecond); pause > 100*time.Microsecond {
			time.Sleep(pause)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return nil
}

// accepting tells whether a Serve has not returned yet.
func (d *Drainer) accepting() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.listeners) > 0
}

// closeListeners closes what the caller says is closed: for a listener that only this
// package still holds open, as a wrapper may be.
func (d *Drainer) closeListeners() {
	d.mu.Lock()
	lns := make([]net.Listener, 0, len(d.listeners))
	for l := range d.listeners {
		lns = append(lns, l.Listener)
	}
	d.mu.Unlock()
	for _, ln := range lns {
		ln.Close() // closed already, normally
	}
}

// outlook is the result of a look at all connections.
type outlook struct {
	waiting int       // connections that Shutdown could still hurt
	next    time.Time // when to look again at the latest; zero: when something changes
}

func (o *outlook) by(t time.Time) {
	if o.next.IsZero() || t.Before(o.next) {
		o.next = t
	}
}

// look judges each connection and closes those that are idle beyond their grace.
func (r *run) look() (o outlook) {
	now := time.Now()
	var due []*track
	d := r.d
	d.mu.Lock()
	for t := d.head.next; t != &d.head; t = t.next {
		switch v, at := r.judge(t, now); v {
		case served:
			o.waiting++
		case graced:
			o.waiting++
			o.by(at)
		case over:
			o.waiting++ // until its end is told
			due = append(due, t)
		}
	}
	d.mu.Unlock()
	for _, t := range due {
		if !t.quiet(now) {
			o.by(now.Add(recheck))
			continue
		}
		t.ended = true
		t.close()
	}
	r.scan = time.Since(now)
	return o
}

type verdict int

const (
	harmless verdict = iota // Shutdown does not hurt it: hijacked, or HTTP/2 without a stream
	served                  // has a request, at least the beginning of one, or is being closed
	graced                  // may send something until a given time
	over                    // its grace is over
)

// judge says what the drain has to do about a connection. d.mu is held.
func (r *run) judge(t *track, now time.Time) (verdict, time.Time) {
	state := t.state.Load()
	switch state {
	case stateHijacked:
		return harmless, time.Time{}
	case stateActive:
		return served, time.Time{}
	}
	if t.ended {
		return served, time.Time{}
	}

	read := t.read.Load()
	if t.seenAt.IsZero() || read != t.seen {
		t.seen, t.seenAt = read, now
	}
	partial := read != t.mark.Load() // net/http has bytes, and has not told of a request
	since := r.start
	if n := t.since.Load(); n > 0 {
		since = r.d.epoch.Add(time.Duration(n))
	}
	end := since.Add(max(r.grace, minIdle))
	if state == stateNew {
		end = since.Add(max(r.grace, minNew))
	}

	http2 := state == stateIdle && t.isHTTP2()
	switch {
	case partial && http2:
		end = later(end, t.seenAt.Add(settle))
	case partial && t.tls.Load() != nil:
		end = later(end, t.seenAt.Add(minNew))
	case partial:
		return served, time.Time{} // a slow client: only ctx is its limit
	}
	switch {
	case now.Before(end):
		return graced, end
	case http2:
		return harmless, time.Time{}
	}
	return over, time.Time{}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// quiet tells whether nothing has arrived on an idle connection that net/http has not
// read, and nothing that it has read is on its way into the accounts.
func (t *track) quiet(now time.Time) bool {
	n, known := int64(0), false
	if t.counted {
		n, known = received(t.raw)
	}
	// After the kernel's count, so that what was read since the connection was judged
	// cannot hide.
	if s := t.state.Load(); t.read.Load() != t.seen || s != stateNew && s != stateIdle {
		return false
	}
	if !known || n <= t.seen {
		return known || !unread(t.raw)
	}
	if t.busySince.IsZero() {
		t.busySince = now
	}
	return now.Sub(t.busySince) >= maxBusy && !unread(t.raw)
}

// unfinished tells whether something is lost when the connection is closed now.
func (t *track) unfinished() bool {
	switch t.state.Load() {
	case stateActive, stateHijacked:
		return true
	}
	if t.counted && t.tls.Load() == nil && t.read.Load() != t.mark.Load() && !t.h2c.Load() {
		return true
	}
	return unread(t.raw)
}

// close closes the connection from the server's side. For TLS that may take a moment,
// since it says good-bye, with a deadline of its own.
func (t *track) close() {
	if c := t.tls.Load(); c != nil {
		go c.Close()
		return
	}
	t.raw.Close()
	t.closed()
}
