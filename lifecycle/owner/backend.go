package owner

import (
	"context"
	"maps"
	"slices"
	"time"

	"overlap/lifecycle/control"
	"overlap/lifecycle/state"
)

// backend answers the control API.
type backend Owner

func (b *backend) Status(_ context.Context, connections bool) (control.Status, error) {
	if !connections {
		return (*Owner)(b).Status(), nil
	}
	b.cfg.Body.Look() // somebody wants to see it, and not a newcomer on its way
	s := (*Owner)(b).Status()
	s.Generations[0].Connections = b.cfg.Body.Connections()
	return s, nil
}

// Status describes the generation, but for its connections.
func (o *Owner) Status() control.Status {
	listeners := o.listeners()
	o.mu.Lock()
	defer o.mu.Unlock()
	g := control.Generation{Generation: o.number, PID: o.record.Owner.PID, State: o.record.State,
		Started: o.record.Started, Switched: o.record.Switched,
		Command: o.record.Command}
	if o.holding.Load() {
		g.State, g.Holding = state.Starting, true
	}
	if o.cfg.Launched {
		g.Owner, g.PID = g.PID, 0
		if o.record.Program != nil {
			g.PID = o.record.Program.PID
		}
	}
	for _, l := range listeners {
		g.Listeners = append(g.Listeners, l.shown())
		g.Sockets = append(append(g.Sockets, l.Inodes...), l.Sockets...)
	}
	g.Sockets = slices.AppendSeq(g.Sockets, maps.Keys(o.claimed))
	status := control.Status{Service: o.cfg.Name, Generations: []control.Generation{g}}
	if o.cfg.Launched {
		status.Takes = []string{control.TakesSettings}
	}
	return status
}

// ask returns the sockets of another generation of the service, as its owner tells them.
func (o *Owner) ask(ctx context.Context, generation int) ([]uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	s, err := control.Dial(o.dir.SocketPath(generation)).Brief(ctx)
	if err != nil {
		return nil, err
	}
	var all []uint64
	for _, g := range s.Generations {
		all = append(all, g.Sockets...)
	}
	return all, nil
}

// Hold says that the generation has no program any more: it is not shown as serving, its clients
// wait for the next one, and it still hands over. While a successor starts the steering is left
// alone: placeholders have filled the places of the sockets, and the switch may be under way.
func (o *Owner) Hold() {
	o.talk.Lock()
	o.holding.Store(true)
	for _, m := range o.Members() {
		for _, ino := range m.Inodes() {
			m.Drop(ino)
		}
	}
	s := o.successor
	if s == nil {
		o.keepWaitingLocked()
	}
	o.talk.Unlock()
	if s == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := s.Call(ctx, opReleased, nil, nil); err != nil {
		o.log.Debug("the new generation was not told", "error", err)
	}
}

// LetGo ends a hold: clients are refused from now on, unless a successor has a place already.
func (o *Owner) LetGo() {
	o.talk.Lock()
	defer o.talk.Unlock()
	o.letGo = true
	if o.successor == nil || !o.reserved {
		o.keepWaitingLocked()
	}
}

// keepWaitingLocked has the clients of a generation without a program wait, or be refused where
// they have waited long enough.
func (o *Owner) keepWaitingLocked() {
	for _, m := range o.Members() {
		if o.letGo {
			m.Leave()
			continue
		}
		err := m.Anchor() // for datagrams too, which are lost: the next one's place is made by it
		if err == nil {
			err = m.Hold()
		}
		if err != nil {
			o.log.Warn("clients are not kept waiting", "address", m.Address(), "error", err)
		}
	}
}

// shown is the address as status shows it.
func (l listener) shown() string {
	if l.Network == "tcp" {
		return l.Address
	}
	return l.Network + ":" + l.Address
}

func (b *backend) Reload(ctx context.Context, req control.ReloadRequest, emit func(control.Event)) {
	out := (*Owner)(b).Reload(ctx, req, func(e control.Event) {
		if e.Kind != control.KindFailed { // the outcome says it
			emit(e)
		}
	})
	kind := control.KindSwitched
	switch {
	case out.Outcome != control.OutcomeSwitched:
		kind = control.KindFailed
	case req.Wait == control.WaitDrained:
		kind = control.KindDrained
	}
	emit(control.Event{Kind: kind, Generation: out.To, Text: out.Reason, Final: true, Outcome: &out})
}

func (b *backend) Stop(ctx context.Context, req control.StopRequest, emit func(control.Event)) {
	o := (*Owner)(b)
	select {
	case o.stops <- req:
	default: // one is enough
	}
	began := time.Now()
	emit(control.Event{Kind: control.KindMessage, Generation: o.number, Text: "draining"})
	select {
	case <-o.drained:
	case <-ctx.Done():
	}
	emit(control.Event{Kind: control.KindDrained, Generation: o.number, Final: true, Outcome: &control.Outcome{
		Service: o.cfg.Name, From: o.number, Outcome: control.OutcomeStopped, TotalMS: milliseconds(time.Since(began))}})
}

func (b *backend) Session(ctx context.Context, s *control.Session) { (*Owner)(b).serveSession(ctx, s) }

// recordedLocked is recorded with o.mu held.
func (o *Owner) recordedLocked() []state.Listener {
	var all []state.Listener
	for _, a := range o.addresses {
		if a.unix != nil {
			all = append(all, state.Listener{Network: "unix", Address: a.path, Inodes: []uint64{a.unix.Inode()}})
			continue
		}
		if !a.member.Used() {
			continue // a client's, or not yet
		}
		at := a.member.Address()
		all = append(all, state.Listener{Network: at.Network, Address: at.String(), V6Only: at.V6Only, Inodes: a.member.Inodes()})
	}
	return all
}
