package owner

import (
	"context"
	"crypto/rand"
	"fmt"
	"math"
	"sync"
	"time"

	"overlap/lifecycle/control"
	"overlap/lifecycle/state"
)

// watch follows the handover that a reload began.
type watch struct {
	mu     sync.Mutex
	token  string
	number int
	events chan control.Event
}

// begin starts following the generation that will present the token.
func (w *watch) begin(token string) <-chan control.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.token, w.number, w.events = token, 0, make(chan control.Event, 64)
	return w.events
}

func (w *watch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.token, w.number, w.events = "", 0, nil
}

// entered notes that a generation said hello.
func (w *watch) entered(h hello) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.events == nil || h.Token != w.token {
		return
	}
	w.number = h.Generation
	w.sendLocked(control.Event{Time: time.Now(), Kind: "starting", Generation: h.Generation})
}

func (w *watch) tell(e control.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.number != 0 && (e.Generation == w.number || e.Kind == "drained") {
		w.sendLocked(e)
	}
}

// broken notes that the session of a generation ended.
func (w *watch) broken(generation int) {
	w.tell(control.Event{Time: time.Now(), Kind: "broken", Generation: generation})
}

func (w *watch) sendLocked(e control.Event) {
	select {
	case w.events <- e:
	default: // nobody needs the sixty-fifth
	}
}

// AwaitReload waits until no reload of this generation runs.
func (o *Owner) AwaitReload() {
	o.reloading.Lock()
	defer o.reloading.Unlock()
}

// reloadMargin is how much longer than its time-out a new generation may take to give up.
const reloadMargin = 2 * time.Second

// Reload starts the next generation and follows its handover to the end. It never returns an
// error: the outcome says what happened.
func (o *Owner) Reload(ctx context.Context, req control.ReloadRequest, emit func(control.Event)) control.Outcome {
	began := time.Now()
	out := control.Outcome{Service: o.cfg.Name, From: o.number, Outcome: "failed"}
	fail := func(format string, args ...any) control.Outcome {
		out.Reason = fmt.Sprintf(format, args...)
		out.TotalMS = milliseconds(time.Since(began))
		emit(control.Event{Time: time.Now(), Kind: "failed", Generation: out.To, Text: out.Reason})
		return out
	}
	if !o.reloading.TryLock() {
		return fail("%v: a reload of this service runs", ErrBusy)
	}
	defer o.reloading.Unlock()
	if s := o.State(); s != state.Serving {
		return fail("generation %d is %s", o.number, s)
	}
	token := rand.Text()
	events := o.watch.begin(token)
	defer o.watch.end()
	next, err := o.cfg.Body.Spawn(req, token)
	if err != nil {
		return fail("%v", err)
	}
	timeout := req.Timeout
	if timeout <= 0 {
		timeout = o.cfg.ReloadTimeout
	}
	if timeout <= 0 {
		timeout = o.cfg.StartTimeout
	}
	// The new generation keeps the time itself, and says more than a kill would.
	patience := time.NewTimer(min(timeout, math.MaxInt64-reloadMargin) + reloadMargin)
	defer patience.Stop()
	var reason string
	for {
		select {
		case e := <-events:
			switch e.Kind {
			case "starting":
				out.To = e.Generation
				emit(e)
			case "failed":
				reason = e.Text
			case "broken":
				if reason == "" {
					reason = ended(next)
				}
				return fail("%s", reason)
			case "switched":
				out.Outcome = "switched"
				out.SwitchMS = milliseconds(e.Time.Sub(began))
				out.TotalMS = out.SwitchMS
				emit(e)
				if req.Wait == "drained" {
					return o.awaitDrained(ctx, events, out, began, emit)
				}
				return out
			default:
				emit(e)
			}
		case <-next.Done():
			// What it said last may still be on its way through the session.
			if reason = o.lastWords(events, reason); reason == "" {
				reason = ended(next)
			}
			if reason == switchedAlready {
				out.Outcome = "switched"
				out.SwitchMS = milliseconds(time.Since(began))
				return out
			}
			return fail("%s", reason)
		case <-patience.C:
			next.Kill()
			return fail("not ready after %s", timeout)
		}
	}
}

// switchedAlready is what lastWords returns for a generation that had switched when it ended.
const switchedAlready = "\x00switched"

// lastWords collects what a generation that has just ended said before.
func (o *Owner) lastWords(events <-chan control.Event, reason string) string {
	wait := time.NewTimer(100 * time.Millisecond)
	defer wait.Stop()
	for {
		select {
		case e := <-events:
			switch e.Kind {
			case "failed":
				reason = e.Text
			case "broken":
				return reason
			}
		case <-wait.C:
			return reason
		}
	}
}

// ended says how a generation ended that said nothing.
func ended(s Spawned) string {
	select {
	case <-s.Done():
	case <-time.After(time.Second):
		return "the new generation closed its session"
	}
	if err := s.Err(); err != nil {
		return fmt.Sprintf("the new generation ended before it was ready: %v", err)
	}
	return "the new generation ended before it was ready"
}

// awaitDrained goes on until this generation is over.
func (o *Owner) awaitDrained(ctx context.Context, events <-chan control.Event, out control.Outcome, began time.Time, emit func(control.Event)) control.Outcome {
	for {
		select {
		case e := <-events:
			if e.Kind == "broken" {
				out.Outcome, out.Reason = "failed", "the new generation died while the old one was draining"
				out.TotalMS = milliseconds(time.Since(began))
				return out
			}
			if e.Kind == "drained" {
				emit(e)
				out.TotalMS = milliseconds(time.Since(began))
				return out
			}
		case <-o.drained:
			out.TotalMS = milliseconds(time.Since(began))
			return out
		case <-ctx.Done():
			return out
		}
	}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
