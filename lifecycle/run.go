package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"overlap/health"
	"overlap/health/notify"
	"overlap/lifecycle/control"
	"overlap/lifecycle/internal/trial"
	"overlap/lifecycle/owner"
)

// Run starts the servers, has them probed, takes over from the running generation, serves, and
// drains when a newer generation has taken over, on a signal to stop, or when ctx ends. It
// returns nil after a clean drain, an error wrapping ErrCut when connections were cut, and the
// reason when the generation never served; then the old one serves on. It is called once.
func (g *Generation) Run(ctx context.Context) error {
	g.entering.Lock()
	again := g.ran
	g.entering.Unlock()
	if again {
		return fmt.Errorf("run: %w", os.ErrClosed)
	}
	if err := g.enter(ctx); err != nil {
		return err
	}
	g.entering.Lock()
	g.ran = true
	g.entering.Unlock()
	defer g.ended.Store(true)
	sig := g.signals()
	defer sig.stop()
	if g.guest != nil {
		return g.runGuest(ctx, sig)
	}
	defer g.owner.Close()
	if err := g.start(ctx, sig); err != nil {
		return g.abandon(err)
	}
	return g.serve(ctx, sig)
}

// start is the way to the switch.
func (g *Generation) start(ctx context.Context, sig *signals) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	interrupted := g.interruptions(sig, cancel)
	err := g.prepare(ctx)
	if err == nil {
		err = g.owner.Switch(ctx)
	}
	again := interrupted()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
			return cause
		}
		return err
	}
	again()
	if err := notify.Send(fmt.Sprintf("READY=1\nMAINPID=%d", os.Getpid())); err != nil {
		g.log.Warn("the service manager was not told", "error", err)
	}
	return nil
}

// interruptions cancels the start when something ends it. The function that it returns ends the
// watching and returns one that says again what was heard: it came too late for the start, and
// must not be lost.
func (g *Generation) interruptions(sig *signals, cancel context.CancelCauseFunc) (end func() (again func())) {
	gone, over := make(chan struct{}), make(chan struct{})
	again := func() {}
	go func() {
		defer close(over)
		select {
		case s := <-sig.stops:
			again = func() { offer(sig.stops, s) }
			cancel(fmt.Errorf("stopped by %s while starting", s))
		case <-g.owner.Stops():
			again = g.Stop
			cancel(errors.New("told to stop while starting"))
		case <-g.stopping:
			again = g.Stop
			cancel(errors.New("stopped while starting"))
		case err := <-g.servers.failed:
			again = func() { offer(g.servers.failed, err) }
			cancel(err)
		case <-gone:
		}
	}()
	return func() func() {
		close(gone)
		<-over
		return again
	}
}

// offer sends what has room.
func offer[T any](c chan<- T, v T) {
	select {
	case c <- v:
	default:
	}
}

// prepare is the way to the moment before the switch.
func (g *Generation) prepare(ctx context.Context) error {
	g.servers.start()
	trial.At("listening")
	if err := g.owner.Settle(ctx); err != nil {
		return err
	}
	trial.At("settled")
	if g.opt.BeforeReady != nil {
		if err := g.opt.BeforeReady(); err != nil {
			return fmt.Errorf("before ready: %w", err)
		}
	}
	gate := health.Gate{StartTimeout: g.opt.StartTimeout}
	addresses, unreachable := g.owner.Addresses()
	err := gate.Wait(ctx, health.Target{Dial: g.owner.Dial, Addresses: addresses, Unreachable: unreachable, Env: os.Environ()}, g.opt.Probes...)
	if err != nil {
		return err
	}
	trial.At("healthy")
	g.owner.Tell(ctx, "healthy", "")
	return context.Cause(ctx)
}

// abandon ends a generation that never served.
func (g *Generation) abandon(reason error) error {
	g.owner.Tell(context.Background(), "failed", reason.Error())
	g.servers.closing()
	g.owner.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	g.servers.finish(ctx, 0)
	return reason
}

// serve waits for the end.
func (g *Generation) serve(ctx context.Context, sig *signals) error {
	var failure error
	for {
		handover := false
		select {
		case <-g.owner.Superseded():
			g.log.Info("a newer generation serves, draining")
			handover = true
		case s := <-sig.stops:
			handover = g.owner.Superseding()
			g.log.Info("draining", "signal", s, "handover", handover)
		case req := <-g.owner.Stops():
			g.log.Info("told to stop, draining")
			if req.Timeout > 0 {
				g.opt.DrainTimeout = req.Timeout
			}
		case <-g.stopping:
		case <-ctx.Done():
			g.log.Info("draining", "cause", context.Cause(ctx))
		case failure = <-g.servers.failed:
			g.log.Error("a server failed, draining", "error", failure)
		case s := <-sig.reloads:
			go g.reloadBySignal(s)
			continue
		}
		err := g.drainNow(sig, handover)
		for !handover && errors.Is(err, owner.ErrTakenBack) {
			err = g.drainNow(sig, false) // a stop remains one when who switched meanwhile has died
		}
		if errors.Is(err, owner.ErrTakenBack) {
			g.watched.Store(false)
			continue
		}
		return errors.Join(failure, err)
	}
}

func (g *Generation) reloadBySignal(s os.Signal) {
	g.log.Info("starting the next generation", "signal", s)
	g.owner.Reload(context.Background(), control.ReloadRequest{}, g.logEvent)
}

// drainNow is one drain, from the switch or the stop to the end.
func (g *Generation) drainNow(sig *signals, handover bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), g.opt.DrainTimeout)
	defer cancel()
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case s := <-sig.stops:
			g.log.Warn("a second signal, cutting what is left", "signal", s)
			g.owner.Final()
			cancel()
		case <-over:
		}
	}()
	g.watched.Store(true)
	if !handover {
		notify.Send("STOPPING=1")
		if d := g.opt.ShutdownDelay; d > 0 {
			wait(ctx, d)
		}
		g.beginDrain()
	}
	r, err := g.owner.Drain(ctx, handover)
	if err != nil {
		return err
	}
	g.log.Info("drained", "finished", r.Finished, "cut", r.Cut, "hijacked", r.Hijacked,
		"backlog", r.Backlog, "connections", r.Connections, "total", r.Total, "handover", r.Handover)
	if g.opt.AfterDrain != nil {
		g.opt.AfterDrain(r)
	}
	if r.Cut > 0 {
		return fmt.Errorf("drain: %d connections at the end of %s: %w", r.Cut, r.Total.Round(time.Millisecond), ErrCut)
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// Stop makes Run drain and return, as SIGTERM does. It does not wait.
func (g *Generation) Stop() {
	select {
	case g.stopping <- struct{}{}:
	default:
	}
}
