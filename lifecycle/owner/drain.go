package owner

import (
	"context"
	"errors"
	"sync"
	"time"

	"overlap/lifecycle/control"
	"overlap/lifecycle/internal/trial"
	"overlap/lifecycle/state"
	"overlap/reuse"
)

// blindTime is how long a drain waits for what may lie in an accept queue where the kernel
// can't be asked.
const blindTime = time.Second

// Drain ends the generation: it accepts until nothing is left at its sockets, lets go of them,
// and finishes its connections. ctx's end cuts what is left. handover says that a newer
// generation gets the connections, which one that has switched meanwhile does too; without it clients
// are kept waiting, then refused. The error
// is ErrTakenBack when the generation serves again instead.
func (o *Owner) Drain(ctx context.Context, handover bool) (Report, error) {
	began := time.Now()
	handover, err := o.beginDrain(handover)
	if err != nil {
		return Report{}, err
	}
	o.cfg.Body.Announce()
	if err := o.before().call(ctx, opLeaving, nil); err != nil && !o.before().gone() {
		o.log.Debug("the generation before was not told", "error", err)
	}
	if !handover {
		o.refuse()
	}
	proving, stop := context.WithCancel(ctx)
	defer stop()
	taken := make(chan struct{})
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		select {
		case <-o.takenBack:
			close(taken)
			stop()
		case <-proving.Done():
		}
	}()
	if !trial.ProofOff {
		o.prove(proving)
	}
	trial.At("proved")
	o.cfg.Body.Linger(proving)
	stop()
	<-watching
	if o.backAgain(taken) {
		o.cfg.Body.Resume()
		return Report{}, ErrTakenBack
	}
	backlog := time.Since(began)
	o.leave()
	trial.At("left")
	o.tellReleased(ctx)
	r := o.cfg.Body.Finish(ctx)
	r.Backlog, r.Total, r.Handover = backlog, time.Since(began), handover
	r.Connections = r.Total - backlog
	o.saveOrSay(func(rec *state.Record) { rec.State = state.Ended })
	o.watch.tell(control.Event{Time: time.Now(), Kind: "drained", Generation: o.number})
	return r, nil
}

// beginDrain says that the generation drains, unless the connections were taken back by now. What
// takes them back later undoes all of it. It reports whether it is a handover.
func (o *Owner) beginDrain(handover bool) (bool, error) {
	o.talk.Lock()
	defer o.talk.Unlock()
	select {
	case <-o.takenBack:
		if handover {
			return false, ErrTakenBack
		}
	default:
	}
	handover = handover || o.handed
	o.drains = true
	o.saveOrSay(func(r *state.Record) { r.State = state.Draining })
	if handover {
		var all sync.WaitGroup // each waits for the kernel, all for the same
		for _, m := range o.Members() {
			all.Go(m.Recede)
		}
		all.Wait()
	}
	return handover, nil
}

// backAgain decides, once and for all, whether the sockets are let go.
func (o *Owner) backAgain(taken <-chan struct{}) bool {
	o.talk.Lock()
	defer o.talk.Unlock()
	select {
	case <-taken:
	case <-o.takenBack:
	default:
		o.released = true
		return false
	}
	o.drains = false
	return true
}

// refuse keeps new clients waiting, for the moment until the sockets are closed: what is in the
// queues can then be served and nothing is reset. A successor that switches meanwhile has its clients again when it
// has told: see affirm.
func (o *Owner) refuse() {
	o.talk.Lock()
	defer o.talk.Unlock()
	if o.handed {
		return
	}
	for _, m := range o.Members() {
		err := m.Anchor()
		if err == nil {
			err = m.Hold()
		}
		if err != nil && !errors.Is(err, reuse.ErrNoSteering) {
			o.log.Debug("new connections are not held off", "address", m.Address(), "error", err)
		}
	}
}

// prove waits until nothing is left at any of the sockets.
func (o *Owner) prove(ctx context.Context) {
	waits := []func() error{func() error { return reuse.AwaitBacklogOf(ctx, o.Members()...) }}
	for _, a := range o.list() {
		if a.unix != nil {
			waits = append(waits, func() error {
				return reuse.AwaitBacklog(ctx, 0, reuse.InodeQueue("unix", 0, a.unix.Inode()))
			})
		}
	}
	var all sync.WaitGroup
	for _, wait := range waits {
		all.Go(func() {
			err := wait()
			if errors.Is(err, reuse.ErrNoProof) {
				o.log.Debug("the kernel can't tell what is left at a socket, a fixed time is waited", "error", err)
				select {
				case <-time.After(blindTime):
				case <-ctx.Done():
				}
			}
		})
	}
	all.Wait()
}

// tellReleased tells the newcomer that it may die now without hope.
func (o *Owner) tellReleased(ctx context.Context) {
	o.talk.Lock()
	s := o.successor
	o.talk.Unlock()
	if s == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := s.Call(ctx, opReleased, nil, nil); err != nil {
		o.log.Debug("the new generation was not told", "error", err)
	}
}
