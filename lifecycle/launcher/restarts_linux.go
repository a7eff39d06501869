package launcher

import (
	"context"
	"errors"
	"syscall"
	"time"

	"overlap/lifecycle/state"
)

// restarts start a program again that ended by itself. It belongs to the launcher's loop.
type restarts struct {
	l     *launcher
	times []time.Time
	gen   *generation // the one without a program
	due   <-chan time.Time
	held  <-chan time.Time
	timer *time.Timer
	hold  *time.Timer
}

func newRestarts(l *launcher) *restarts { return &restarts{l: l} }

func (r *restarts) stop() {
	for _, t := range []*time.Timer{r.timer, r.hold} {
		if t != nil {
			t.Stop()
		}
	}
	r.due, r.held = nil, nil
}

// calm ends the waiting: a generation serves.
func (r *restarts) calm(g *generation) {
	if r.gen != nil && r.gen != g {
		r.stop()
		r.gen = nil
	}
}

// crashed decides what becomes of a generation whose program ended. It returns an error where
// the launcher gives up. tried is the generation that was to take its place and failed, nil at first.
func (r *restarts) crashed(g, tried *generation) error {
	g.lastTry = tried
	if !r.wanted(g) {
		return r.giveUp(g)
	}
	now := time.Now()
	for len(r.times) > 0 && now.Sub(r.times[0]) > crashWindow {
		r.times = r.times[1:]
	}
	if len(r.times) >= maxCrashes {
		r.l.log.Error("the program ends too often, giving up", "times", len(r.times)+1, "within", crashWindow)
		return r.giveUp(g)
	}
	backoff := min(firstBackoff<<len(r.times), highestBackoff)
	r.times = append(r.times, now)
	r.l.log.Info("the program is started again", "in", backoff)
	if r.timer != nil {
		r.timer.Stop()
	}
	r.timer = time.NewTimer(backoff)
	r.due = r.timer.C
	if r.gen != g {
		if r.hold != nil {
			r.hold.Stop()
		}
		r.gen = g
		r.hold = time.NewTimer(g.req.set.Hold)
		r.held = r.hold.C
	}
	return nil
}

// wanted reports whether the policy asks for a restart.
func (r *restarts) wanted(g *generation) bool {
	code, _ := g.program.code()
	if r.l.terminal != nil && code == exitSignalBase+int(syscall.SIGINT) {
		return false // ^C was meant for it
	}
	switch g.req.set.restart {
	case RestartAlways:
		return true
	case RestartOnFailure:
		return code != 0
	}
	return false
}

func (r *restarts) giveUp(g *generation) error {
	r.stop()
	r.gen = nil
	close(g.restarting)
	return nil
}

// again starts the program again.
func (r *restarts) again(ctx context.Context) {
	r.due = nil
	g := r.gen
	if g == nil || g.owner.State() != state.Serving {
		return
	}
	next := r.l.newGeneration(request{command: g.req.command, dir: g.req.dir, env: g.req.env, set: g.req.set, token: "restart", instead: g})
	go func() {
		if err := next.start(ctx); err != nil && !errors.Is(err, errSuperseded) && !errors.Is(err, errStopping) {
			r.l.log.Error("the program could not be started again", "error", err)
			r.l.events <- happening{kind: crashed, gen: g, tried: next}
		}
	}()
}

// letGo ends the hold: clients are refused from now on.
func (r *restarts) letGo() {
	r.held = nil
	if r.gen != nil {
		r.l.log.Warn("clients are refused from now on", "after", r.gen.req.set.Hold)
		r.gen.owner.LetGo()
	}
}
