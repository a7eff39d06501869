package owner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"overlap/lifecycle/control"
	"overlap/lifecycle/internal/trial"
	"overlap/lifecycle/state"
)

// serveSession is the old generation's side of a handover: it answers one newcomer until the
// session breaks.
func (o *Owner) serveSession(ctx context.Context, s *control.Session) {
	s.Handle(func(ctx context.Context, op string, body json.RawMessage) (any, error) {
		if op == opHello {
			o.cfg.Body.Look() // what is gone must not be expected of the newcomer
		}
		o.talk.Lock()
		defer o.talk.Unlock()
		return o.answerLocked(s, op, body)
	})
	s.Start()
	select {
	case <-s.Done():
	case <-o.drained:
		// The newcomer sees by the end of the session that this generation is gone.
		s.Close()
	}
	o.talk.Lock()
	defer o.talk.Unlock()
	if o.successor == s {
		o.brokenLocked()
	}
}

func (o *Owner) answerLocked(s *control.Session, op string, body json.RawMessage) (any, error) {
	trial.At("old " + op)
	if op == opHello {
		var h hello
		if err := json.Unmarshal(body, &h); err != nil {
			return nil, err
		}
		return o.helloLocked(s, h)
	}
	if o.successor != s {
		return nil, fmt.Errorf("%s: say hello first", op)
	}
	switch op {
	case opReserve:
		var p place
		if err := json.Unmarshal(body, &p); err != nil {
			return nil, err
		}
		m := o.member(p.Network, p.Address)
		if m == nil {
			return nil, fmt.Errorf("not listening on %s", p.Address)
		}
		o.reserved = true
		if err := m.Reserve(); err != nil {
			return nil, err
		}
		return reserved{m.Sockets()}, nil
	case opYield:
		o.reserved = true
		for _, m := range o.Members() {
			m.Yield()
		}
		return nil, nil
	case opEvent:
		var e event
		if err := json.Unmarshal(body, &e); err != nil {
			return nil, err
		}
		o.watch.tell(control.Event{Time: time.Now(), Kind: e.Kind, Generation: o.follower, Text: e.Text})
		return nil, nil
	case opSwitched:
		return nil, o.switchedLocked()
	case opLeaving:
		o.final = true
		return nil, nil
	case opReturn:
		if !o.handed || o.released || o.final || o.holding.Load() {
			return nil, errNoReturn
		}
		o.successor = nil
		o.watch.broken(o.follower)
		o.takeBackLocked()
		return nil, nil
	}
	return nil, fmt.Errorf("unknown message %q", op)
}

// helloLocked meets a newcomer. A successor that died a moment ago is got over first.
func (o *Owner) helloLocked(s *control.Session, h hello) (any, error) {
	if o.successor != nil && !o.lives(o.follower) {
		o.brokenLocked()
	}
	w := welcome{Generation: o.number, Supervised: o.cfg.Supervised, Holding: o.holding.Load()}
	if o.State() != state.Serving || o.handed || o.released {
		return w, nil
	}
	if o.successor != nil {
		return nil, fmt.Errorf("generation %d is taking over", o.follower)
	}
	w.Serving, w.Listeners = true, o.listeners()
	if w.Supervised && h.Token == "" && !h.Supervised {
		return w, nil
	}
	o.successor, o.follower, o.reserved = s, h.Generation, false
	o.watch.entered(h)
	go o.reserve(s)
	return w, nil
}

// reserve readies all groups for a newcomer while its program starts. What fails here is said when
// it asks for that group.
func (o *Owner) reserve(s *control.Session) {
	for _, m := range o.Members() {
		o.talk.Lock()
		if o.successor == s && !o.handed && !o.holding.Load() {
			if err := m.Reserve(); err != nil {
				o.log.Debug("a group is not ready for a newcomer yet", "address", m.Address(), "error", err)
			}
		}
		o.talk.Unlock()
	}
}

// switchedLocked begins the drain.
func (o *Owner) switchedLocked() error {
	if o.released || o.handed {
		return nil
	}
	o.handed = true
	o.saveOrSay(func(r *state.Record) { r.State = state.Draining })
	o.watch.tell(control.Event{Time: time.Now(), Kind: "switched", Generation: o.follower})
	select {
	case o.superseded <- struct{}{}:
	default:
	}
	return nil
}

// brokenLocked gets over the end of the session with the successor.
func (o *Owner) brokenLocked() {
	o.successor = nil
	if o.handed && o.final {
		return // it has handed over itself, and ended
	}
	o.watch.broken(o.follower)
	switch {
	case o.released:
		return
	case o.handed && o.lives(o.follower):
		o.log.Warn("the session with the new generation broke, but it lives", "successor", o.follower)
		return
	case o.handed && o.Superseding(): // one newer than the successor
		return
	case o.handed:
		o.takeBackLocked()
	default:
		o.reclaim()
		n := o.follower
		o.tidying.Go(func() { o.tidyAfter(n) })
	}
}

// tidyAfter ends the program of a successor that was killed before it was checked.
func (o *Owner) tidyAfter(successor int) {
	ctx, cancel := context.WithTimeout(context.Background(), dyingTime)
	defer cancel()
	go func() {
		select {
		case <-o.drained: // whoever comes next does it
			cancel()
		case <-ctx.Done():
		}
	}()
	for o.dir.Owned(successor) {
		select {
		case <-ctx.Done():
			return // it lives, or this one is over
		case <-time.After(5 * time.Millisecond):
		}
	}
	if err := Tidy(ctx, o.dir, o.log); err != nil {
		o.log.Debug("what the new generation left is still there", "error", err)
	}
}

var errNoReturn = errors.New("it has let go already")

// takeBackLocked has the generation serve again.
func (o *Owner) takeBackLocked() {
	o.handed = false
	o.reclaim()
	o.saveOrSay(func(r *state.Record) { r.State = state.Serving })
	o.log.Warn("the new generation died, this one serves again", "successor", o.follower)
	select {
	case <-o.superseded: // it is true no more
		if !o.drains {
			return // nobody has heard of it yet
		}
	default:
	}
	select {
	case o.takenBack <- struct{}{}:
	default:
	}
}

// dyingTime is how long a killed process may take from the end of its session to that of its
// lock: the kernel closes one descriptor after the other.
const dyingTime = time.Second

// lives reports whether a generation's owner exists, and is not just dying.
func (o *Owner) lives(generation int) bool {
	for end := time.Now().Add(dyingTime); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if !o.dir.Owned(generation) {
			return false
		}
	}
	return true
}

// Handed reports whether a successor has switched, and lives as far as is known. Under the
// handover lock the answer is certain.
func (o *Owner) Handed() bool {
	o.talk.Lock()
	defer o.talk.Unlock()
	return o.handed
}

// Final says that the generation ends whatever becomes of its successor.
func (o *Owner) Final() {
	o.talk.Lock()
	defer o.talk.Unlock()
	o.final = true
}

// reclaim puts the groups back under this generation's steering. o.talk is held.
func (o *Owner) reclaim() {
	if o.holding.Load() {
		o.keepWaitingLocked()
		return
	}
	var all sync.WaitGroup // each waits for the kernel, all for the same
	for _, m := range o.Members() {
		if len(m.Inodes()) == 0 {
			continue // its program closed that one
		}
		all.Go(func() {
			if err := m.Reclaim(); err != nil {
				o.log.Error("take the connections back", "address", m.Address(), "error", err)
			}
		})
	}
	all.Wait()
}

// Superseding reports whether a newer generation lives and serves: the meaning of a SIGTERM.
func (o *Owner) Superseding() bool {
	records, _ := o.dir.Generations()
	for _, r := range records {
		if r.Generation > o.number && r.State == state.Serving && o.dir.Owned(r.Generation) {
			return true
		}
	}
	return false
}
