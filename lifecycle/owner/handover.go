package owner

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"overlap/lifecycle/internal/trial"
	"overlap/lifecycle/state"
	"overlap/reuse"
)

// Settle gives the generation's sockets the places they will serve from. All sockets that the
// generation begins with are there.
func (o *Owner) Settle(ctx context.Context) error {
	if err := o.refuseOther(); err != nil {
		return err
	}
	if p := o.before(); p != nil {
		if err := p.call(ctx, opYield, nil); err != nil && !p.gone() {
			return fmt.Errorf("generation %d can't make room: %w", p.number, err)
		}
	}
	o.finding.Lock()
	defer o.finding.Unlock()
	if err := o.findAgainLocked(ctx); err != nil {
		return err
	}
	trial.At("yielded")
	for _, a := range o.list() {
		if a.member == nil || a.coming() {
			continue
		}
		if a.serves == nil {
			a.serves = o.servedThere(a.member.Address())
		}
		if err := a.member.Settle(a.serves); err != nil {
			return err
		}
	}
	return o.save(func(r *state.Record) { r.Listeners = o.recordedLocked() })
}

// servedThere are the predecessor's sockets of an address that was not known when the member
// was made.
func (o *Owner) servedThere(a reuse.Address) []uint64 {
	l, _ := o.compare(a)
	if l == nil {
		return nil
	}
	return l.Inodes
}

// refuseOther refuses to take over from a service whose name is the same only because nobody
// chose one.
func (o *Owner) refuseOther() error {
	p := o.before()
	if p == nil || !o.cfg.Default || o.cfg.Token != "" || len(p.listeners) == 0 {
		return nil
	}
	for _, a := range o.list() {
		if a.joined {
			return nil
		}
		if a.member != nil && o.servedThere(a.member.Address()) != nil {
			return nil
		}
	}
	at := p.listeners[0]
	return fmt.Errorf("%w: %q, generation %d, on %s", ErrOther, o.cfg.Name, p.number, at.Address)
}

func (o *Owner) list() []*address {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.addresses)
}

// Dial connects to one of the generation's own addresses and reaches this generation, and to
// every other address in the ordinary way. It is the health checks' way in.
func (o *Owner) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var wider *reuse.Member // a wildcard, or another family's localhost
	for _, a := range o.list() {
		if a.unix != nil {
			if network == "unix" && addr == a.path {
				return a.unix.Dial(ctx)
			}
			continue
		}
		at := a.member.Address()
		switch {
		case at.Network != baseNetwork(network) || a.coming(): // what is bound since is not settled
		case at.AddrPort.String() == addr:
			return a.member.DialProbe(ctx)
		case wider == nil && reaches(at, addr) && at.Reachable():
			wider = a.member
		}
	}
	if wider != nil {
		return wider.DialProbe(ctx)
	}
	return (&net.Dialer{}).DialContext(ctx, network, addr)
}

func baseNetwork(n string) string {
	if len(n) > 3 && n != "unix" {
		return n[:3]
	}
	return n
}

// reaches reports whether somebody who connects to addr reaches the address.
func reaches(a reuse.Address, addr string) bool {
	b, err := reuse.ParseAddress(context.Background(), a.Network, addr)
	if err != nil || b.AddrPort.Port() != a.AddrPort.Port() {
		return false
	}
	if a.AddrPort == b.AddrPort || b.AddrPort.Addr().IsUnspecified() {
		return true
	}
	// localhost may stand for either family, and a wildcard takes every address.
	return b.AddrPort.Addr().IsLoopback() && (a.AddrPort.Addr().IsLoopback() || a.AddrPort.Addr().IsUnspecified()) ||
		a.AddrPort.Addr().IsUnspecified()
}

// Tell lets whoever watches the handover know how far it got.
func (o *Owner) Tell(ctx context.Context, kind, text string) {
	if err := o.before().call(ctx, opEvent, event{kind, text}); err != nil && !o.before().gone() {
		o.log.Debug("the old generation was not told", "event", kind, "error", err)
	}
}

// Switch gives the generation every new connection of all its addresses, tells the old one,
// and frees the handover lock. When it returns an error the old generation serves on, once the
// owner is closed.
func (o *Owner) Switch(ctx context.Context) error {
	began, err := o.take(ctx)
	if err != nil {
		return err
	}
	took := time.Since(began)
	trial.At("switched")
	o.saveOrSay(func(r *state.Record) {
		r.State, r.Switched = state.Serving, began
		r.Listeners = o.recordedLocked()
	})
	trial.At("recorded")
	o.tellSwitched(context.WithoutCancel(ctx), took)
	trial.At("told")
	o.affirm()
	o.log.Info("serving", "switch", took)
	o.unlock()
	return nil
}

// affirm puts the steering in place once more: a socket that came to the old generation after the
// switch, and before it heard of it, may have brought the connections back. From now on it
// steers no more.
func (o *Owner) affirm() {
	for _, m := range o.Members() {
		if len(m.Inodes()) == 0 {
			continue
		}
		if err := m.Affirm(); err != nil {
			o.log.Error("put the steering in place", "address", m.Address(), "error", err)
		}
	}
}

// take gives the generation the connections, and returns when that began.
func (o *Owner) take(ctx context.Context) (began time.Time, err error) {
	o.finding.Lock()
	defer o.finding.Unlock()
	if err := o.findAgainLocked(ctx); err != nil {
		return began, err
	}
	began = time.Now()
	if o.cfg.Launched {
		// If this process dies now its program may have the connections: see unchecked.
		if err := o.save(func(r *state.Record) { r.Switched, r.Listeners = began, o.recordedLocked() }); err != nil {
			return began, err
		}
	}
	for _, a := range o.list() {
		if a.coming() {
			continue // [Owner.Changed] comes for it
		}
		var err error
		if a.member != nil {
			err = a.member.Switch()
		} else {
			err = a.unix.Publish()
		}
		if err != nil {
			return began, fmt.Errorf("switch: %w", err)
		}
	}
	o.decided = true
	return began, nil
}

// tellSwitched has the predecessor drain.
func (o *Owner) tellSwitched(ctx context.Context, took time.Duration) {
	p := o.before()
	if p == nil || p.orphan != nil {
		return
	}
	if p.session != nil {
		err := p.call(ctx, opSwitched, switched{took.Microseconds()})
		if err == nil || p.gone() {
			return
		}
		o.log.Warn("the old generation does not answer, it is sent SIGTERM", "predecessor", p.number, "error", err)
	}
	if err := p.terminate(); err != nil && !errors.Is(err, context.Canceled) {
		o.log.Warn("the old generation could not be sent SIGTERM", "predecessor", p.number, "error", err)
	}
}

// Changed has the group follow after sockets of the generation came or went while it serves. An
// address that has none any more, and is not awaited, is given up: clients are refused there.
// What only went waits for the end of a handover, whose places would be disturbed, and so does what came beside a
// socket that has the address's clients.
func (o *Owner) Changed(came bool, awaited func(*reuse.Member) bool) error {
	o.talk.Lock()
	defer o.talk.Unlock()
	if o.handed || o.holding.Load() || !came && o.successor != nil {
		return nil
	}
	var failed []error
	for _, m := range o.Members() {
		comes := awaited(m) // asked first: what is awaited no more may have come
		if len(m.Inodes()) == 0 {
			if o.successor == nil && !comes {
				o.forget(m)
				m.Leave()
			}
			continue
		}
		if o.successor != nil && m.Steered() {
			continue
		}
		if err := m.Reclaim(); err != nil {
			failed = append(failed, err) // the other addresses have their clients all the same
		}
	}
	return errors.Join(append(failed, o.save(func(r *state.Record) { r.Listeners = o.recordedLocked() }))...)
}
