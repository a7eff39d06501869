package lifecycle

import (
	"context"

	"overlap/lifecycle/control"
	"overlap/lifecycle/internal/trial"
	"overlap/lifecycle/owner"
)

// body is a Generation as its owner sees it.
type body Generation

var _ owner.Body = (*body)(nil)

func (b *body) Announce() {
	if trial.AnnounceOff {
		return
	}
	b.servers.each(func(s *server) {
		if s.http != nil {
			s.http.Announce()
		}
	})
}

func (b *body) Resume() {
	b.servers.each(func(s *server) {
		if s.http != nil {
			s.http.Resume()
		}
	})
}

// Linger has nothing to wait for: a closed listener harms no connection of this process.
func (b *body) Linger(context.Context) { b.servers.closing() }

func (b *body) Finish(ctx context.Context) owner.Report {
	g := (*Generation)(b)
	g.beginDrain()
	return g.servers.finish(ctx, g.opt.IdleGrace)
}

func (b *body) Connections() int { return b.servers.connections() }

// Look has nothing to find: the generation's own sockets say when they close.
func (b *body) Look() {}

func (b *body) Spawn(req control.ReloadRequest, token string) (owner.Spawned, error) {
	return spawn((*Generation)(b), req, token)
}

// beginDrain tells the program, once.
func (g *Generation) beginDrain() {
	g.drain.Do(func() {
		close(g.draining)
		if g.opt.OnDrain != nil {
			g.opt.OnDrain()
		}
	})
}
