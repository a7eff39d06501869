package owner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"overlap/lifecycle/control"
	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
	"overlap/reuse"
)

// answerTime is how long the owner of the old generation has for an answer. One that is
// stopped or hangs is gone round: it gets SIGTERM after the switch.
const answerTime = 5 * time.Second

// predecessor is the generation that serves while this one starts, as its successor sees it.
type predecessor struct {
	number    int
	listeners []listener
	owner     process.Identity
	// session is nil where the owner does not answer, or is dead.
	session *control.Session
	// orphan is the record of a program whose launcher died.
	orphan *state.Record
}

func (p *predecessor) close() {
	if p.session != nil {
		p.session.Close()
	}
}

// before is the predecessor, nil where there is none.
func (o *Owner) before() *predecessor {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.predecessor
}

func (o *Owner) follow(p *predecessor) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.predecessor = p
}

// findAgainLocked looks for the serving generation anew where the predecessor died meanwhile: the
// one before it may have taken its connections back, and must be told of the switch; or its
// program serves on without an owner. o.finding is held.
func (o *Owner) findAgainLocked(ctx context.Context) error {
	p := o.before()
	if p == nil || !p.gone() {
		return nil
	}
	o.log.Warn("the old generation died", "predecessor", p.number)
	if err := o.find(ctx); err != nil {
		return err
	}
	if o.before() == p {
		o.follow(nil)
	}
	for _, a := range o.list() {
		if a.member == nil {
			continue
		}
		if err := o.uphold(a.member); err != nil {
			o.log.Warn("the steering is not set right", "address", a.member.Address(), "error", err)
		}
		a.serves = o.servedThere(a.member.Address())
		if len(a.member.Inodes()) == 0 {
			continue
		}
		if err := a.member.Settle(a.serves); err != nil {
			return err
		}
	}
	return nil
}

// Predecessor is the number of the generation that served when this one entered; 0 is none.
func (o *Owner) Predecessor() int {
	if p := o.before(); p != nil {
		return p.number
	}
	return 0
}

// Orphan is the record of the predecessor where it is a program whose launcher died, else nil.
func (o *Owner) Orphan() *state.Record {
	if p := o.before(); p != nil {
		return p.orphan
	}
	return nil
}

// Expected are the addresses that the predecessor listens on.
func (o *Owner) Expected() []reuse.Address {
	p := o.before()
	if p == nil {
		return nil
	}
	var all []reuse.Address
	for _, l := range p.listeners {
		if l.Network == "unix" || l.Unused {
			continue
		}
		a, err := reuse.ExactAddress(l.Network, l.Address, l.V6Only)
		if err != nil {
			continue
		}
		all = append(all, a)
	}
	return all
}

// GiveBack has the predecessor take its connections back, where it still listens, because this
// generation ends at once. It reports whether it did.
func (o *Owner) GiveBack(ctx context.Context) bool {
	o.talk.Lock()
	handed := o.handed
	o.talk.Unlock()
	p := o.before()
	if p == nil || p.session == nil || handed || o.alone.Load() {
		return false
	}
	if err := p.call(ctx, opReturn, nil); err != nil {
		o.log.Debug("the old generation does not take its connections back", "predecessor", p.number, "error", err)
		return false
	}
	return true
}

// find looks for the generation that serves. The newest that says so is asked first; one that
// drains may have to take its connections back, because its successor died a moment ago.
func (o *Owner) find(ctx context.Context) error {
	if r := o.cfg.Adopt; r != nil {
		for _, other := range o.readable() {
			if other.Generation != o.number && (o.dir.Owned(other.Generation) || Orphan(other)) {
				return fmt.Errorf("adopt pid %d: generation %d of this service runs, and is taken over from without --adopt", r.Owner.PID, other.Generation)
			}
		}
		o.follow(&predecessor{number: r.Generation, owner: r.Owner, orphan: r, listeners: recordedListeners(*r)})
		return nil
	}
	records := append(o.unreadable(), o.readable()...)
	slices.SortStableFunc(records, func(a, b state.Record) int { return rank(b) - rank(a) })
	for _, r := range records {
		if r.Generation == o.number || !o.dir.Owned(r.Generation) || r.State == state.Starting {
			continue
		}
		p, err := o.greet(ctx, r)
		if err != nil {
			return err
		}
		if p != nil {
			o.follow(p)
			o.log.Debug("found the serving generation", "predecessor", p.number)
			return nil
		}
	}
	for _, r := range records {
		if r.Generation != o.number && !o.dir.Owned(r.Generation) && Orphan(r) {
			complete(&r)
			p := &predecessor{number: r.Generation, owner: r.Owner, orphan: &r}
			p.listeners = recordedListeners(r)
			o.follow(p)
			o.log.Warn("the launcher of the serving generation is dead, its program is taken over", "predecessor", r.Generation)
			return nil
		}
	}
	return nil
}

func (o *Owner) readable() []state.Record {
	records, _ := o.dir.Generations()
	return records
}

// unreadable are the generations that live and whose record can't be read: their owners still
// answer.
func (o *Owner) unreadable() []state.Record {
	records, broken := o.dir.Generations()
	newest, err := o.dir.Newest()
	if len(broken) == 0 || err != nil {
		return nil
	}
	var all []state.Record
	for n := newest; n > max(newest-100, 0); n-- {
		known := slices.ContainsFunc(records, func(r state.Record) bool { return r.Generation == n })
		if n != o.number && !known && o.dir.Owned(n) {
			all = append(all, state.Record{Generation: n, State: state.Serving})
		}
	}
	return all
}

func rank(r state.Record) int {
	if r.State == state.Serving || r.State == state.Starting && !unchecked(r) {
		return 1
	}
	return 0
}

func recordedListeners(r state.Record) []listener {
	var all []listener
	for _, l := range r.Listeners {
		all = append(all, listener{Network: l.Network, Address: l.Address, V6Only: l.V6Only, UID: -1, Inodes: l.Inodes, Sockets: l.Inodes})
	}
	return all
}

// greet introduces this generation to another one and returns nil where that does not serve.
func (o *Owner) greet(ctx context.Context, r state.Record) (*predecessor, error) {
	p := &predecessor{number: r.Generation, owner: r.Owner}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	session, err := control.Dial(o.dir.SocketPath(r.Generation)).Session(ctx)
	var w welcome
	if err == nil {
		session.Handle(o.fromPredecessor)
		session.Start()
		err = session.Call(ctx, opHello, hello{Generation: o.number, PID: os.Getpid(), Token: o.cfg.Token,
			Supervised: o.cfg.Supervised}, &w)
		if err != nil {
			session.Close()
		}
	}
	switch {
	case err != nil && !o.lives(r.Generation):
		return nil, nil // it died just now
	case err != nil && r.State != state.Serving:
		return nil, nil
	case err != nil && errors.Is(err, context.DeadlineExceeded):
		o.log.Warn("the serving generation does not answer, it will be sent SIGTERM after the switch", "predecessor", r.Generation, "error", err)
		p.listeners = recordedListeners(r)
		return p, nil
	case err != nil:
		return nil, fmt.Errorf("talk to generation %d: %w", r.Generation, err)
	case !w.Serving:
		session.Close()
		return nil, nil
	case w.Supervised && o.cfg.Token == "" && !o.cfg.Supervised:
		session.Close()
		return nil, fmt.Errorf("generation %d: %w", r.Generation, ErrSupervised)
	}
	p.session, p.listeners = session, w.Listeners
	o.alone.Store(w.Holding)
	go o.watchOver(p)
	return p, nil
}

// fromPredecessor answers what the predecessor says.
func (o *Owner) fromPredecessor(_ context.Context, op string, _ json.RawMessage) (any, error) {
	if op == opReleased {
		o.alone.Store(true)
		o.log.Debug("the old generation has no sockets any more")
		return nil, nil
	}
	return nil, fmt.Errorf("unknown message %q", op)
}

// call says something to the predecessor, if there is one that listens.
func (p *predecessor) call(ctx context.Context, op string, in any) error {
	if p == nil || p.session == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return p.session.Call(ctx, op, in, nil)
}

// gone reports whether the predecessor ended meanwhile.
func (p *predecessor) gone() bool {
	if p == nil || p.session == nil {
		return false
	}
	select {
	case <-p.session.Done():
		return true
	default:
		return false
	}
}

// reserve has the predecessor ready its group of an address for a newcomer, and returns the sockets
// that it has there.
func (p *predecessor) reserve(ctx context.Context, a reuse.Address) ([]uint64, error) {
	if p.session == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	var r reserved
	err := p.session.Call(ctx, opReserve, place{a.Network, a.String()}, &r)
	if err != nil && !p.gone() {
		return nil, fmt.Errorf("generation %d can't make room on %s: %w", p.number, a, err)
	}
	return r.Sockets, nil
}

// terminate sends SIGTERM to a predecessor that can't be told otherwise.
func (p *predecessor) terminate() error {
	h, err := process.Open(p.owner)
	if err != nil {
		return err
	}
	defer h.Close()
	return h.Signal(syscall.SIGTERM)
}
