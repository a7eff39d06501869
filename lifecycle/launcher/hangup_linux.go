package launcher

import (
	"context"

	"overlap/lifecycle/control"
	"overlap/lifecycle/state"
)

// heedHangups reloads at each SIGHUP, one after the other: what a program read when it started may be
// out of date when the next one comes. Of several that come meanwhile one is enough.
func (l *launcher) heedHangups() {
	for range l.hangups {
		l.reloadBySignal()
	}
}

func (l *launcher) reloadBySignal() {
	for {
		l.mu.Lock()
		g, turned := l.current, l.turned
		l.mu.Unlock()
		if g == nil {
			l.log.Warn("no generation to reload")
			return
		}
		g.owner.AwaitReload()
		if g.owner.State() != state.Serving && !l.isStopping() {
			// The reload that ran has just given its connections away.
			select {
			case <-turned:
			case <-g.done:
			}
			if l.serving() != g {
				continue
			}
		}
		l.log.Info("starting the next generation", "signal", "SIGHUP")
		out := g.owner.Reload(context.Background(), control.ReloadRequest{}, func(e control.Event) {
			if e.Kind == control.KindFailed {
				l.log.Error("reload failed, the old generation serves on", "reason", e.Text)
				return
			}
			l.log.Info("reload", "step", e.Kind, "next", e.Generation)
		})
		if out.Outcome == control.OutcomeSwitched {
			select { // the next one is for the new generation
			case <-turned:
			case <-g.done:
			}
		}
		return
	}
}
