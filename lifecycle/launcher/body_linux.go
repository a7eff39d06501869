package launcher

import (
	"context"

	"overlap/lifecycle/control"
	"overlap/lifecycle/internal/trial"
	"overlap/lifecycle/owner"
)

// body is a generation as its owner sees it.
type body generation

var _ owner.Body = (*body)(nil)

// Announce has nothing to say: the program knows nothing of it.
func (b *body) Announce() {}

// Resume has nothing to take back.
func (b *body) Resume() {}

// Linger gives the program's connections time to end, since a program without a graceful
// shutdown cuts them, and ends kept ones between two requests when most of it is over. One that
// says that it drains by itself is spared the wait.
func (b *body) Linger(ctx context.Context) {
	g := (*generation)(b)
	g.lingered.Store(-1)
	if g.selfDrains.Load() || g.holding.Load() || g.req.set.StopDelay <= 0 {
		return
	}
	delay := g.req.set.StopDelay
	whole, cancel := context.WithTimeout(ctx, delay)
	defer cancel()
	first, cancelFirst := context.WithTimeout(whole, delay-delay/partingShare)
	defer cancelFirst()
	clients := g.sockets.connections()
	left := clients.awaitNone(first, g.program.gone())
	if left > 0 && whole.Err() == nil && !trial.PartingOff {
		left = clients.part(whole, g.program.gone())
	}
	if clients.datagrams() && g.owner.Handed() { // a stop leaves them to the program: nobody serves meanwhile
		select {
		case <-whole.Done():
		case <-g.program.gone():
		}
	}
	g.lingered.Store(int64(left))
}

// Finish sends the stop signal, and SIGKILL when ctx ends.
func (b *body) Finish(ctx context.Context) owner.Report {
	g := (*generation)(b)
	before := int(g.lingered.Load())
	if before < 0 {
		before = g.sockets.connections().count()
	}
	if g.owner.Handed() && !g.selfDrains.Load() {
		for _, m := range g.owner.Members() {
			m.Release()
		}
	}
	g.stopped.Store(true)
	g.program.signal(g.req.set.StopSignal)
	r := owner.Report{}
	select {
	case <-g.program.gone():
		r.Finished = before
	case <-ctx.Done():
		r.Cut = g.sockets.connections().count()
		r.Finished = max(before-r.Cut, 0)
		g.log.Warn("the program did not end in time, it is killed", "connections", r.Cut)
	}
	g.program.kill()
	return r
}

func (b *body) Connections() int {
	if (*generation)(b).running() == nil {
		return 0
	}
	return b.sockets.connections().count()
}

// Look drops the sockets that the program has closed.
func (b *body) Look() {
	if (*generation)(b).running() != nil {
		b.sockets.review()
	}
}

// Spawn starts the next generation in this launcher.
func (b *body) Spawn(req control.ReloadRequest, token string) (owner.Spawned, error) {
	l := (*generation)(b).l
	l.mu.Lock()
	r := request{command: l.command, dir: l.dir, env: l.env, set: l.set, token: token, timeout: req.Timeout}
	l.mu.Unlock()
	var err error
	if r.set, err = r.set.with(req.Settings); err != nil {
		return nil, err
	}
	if len(req.Command) > 0 {
		r.command = req.Command
	}
	if req.Directory != "" {
		r.dir = req.Directory
	}
	if req.Env != nil {
		r.env = req.Env
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &spawned{cancel: cancel, done: make(chan struct{})}
	next := l.newGeneration(r)
	go func() {
		defer cancel()
		if s.err = next.start(ctx); s.err != nil {
			close(s.done)
		}
	}()
	return s, nil
}

// spawned is a generation that starts.
type spawned struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

func (s *spawned) Done() <-chan struct{} { return s.done }
func (s *spawned) Err() error            { return s.err }
func (s *spawned) Kill()                 { s.cancel() }
