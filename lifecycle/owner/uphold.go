package owner

import (
	"context"

	"overlap/reuse"
)

// The owner of the serving generation may die while this one starts. Its program serves on, but
// the owner's placeholders are gone, the program's sockets may have moved to other places than the
// steering names, and what joins the group next gets the connections: so this generation sets the
// steering right, at once, and again until it switches.

// Anchor puts a placeholder of the member's into the group of its address: behind the sockets of the
// program that serves there without an owner, if there is one.
func (o *Owner) Anchor(m *reuse.Member) error {
	if serving, borrow := o.orphaned(m); serving != nil {
		return m.AnchorBehind(serving, borrow)
	}
	if err := m.Anchor(); err != nil {
		return err
	}
	return o.uphold(m) // the owner may have died just now
}

// haveRoom has the predecessor make room at an address, and returns the sockets that it has there.
// Where it is dead, whoever serves now is found first: what joins must come behind his sockets.
func (o *Owner) haveRoom(ctx context.Context, a reuse.Address) ([]uint64, error) {
	p := o.before()
	if p == nil {
		return nil, nil
	}
	theirs, err := p.reserve(ctx, a)
	if err != nil || !p.gone() {
		return theirs, err
	}
	o.finding.Lock()
	defer o.finding.Unlock()
	return theirs, o.findAgainLocked(ctx)
}

// orphaned are the sockets of an address that serve without an owner, and the way to them.
func (o *Owner) orphaned(m *reuse.Member) ([]uint64, func(ino uint64, f func(fd int) error) error) {
	r := o.Orphan()
	if r == nil {
		return nil, nil
	}
	a := m.Address()
	for _, l := range r.Listeners {
		if l.Network == a.Network && l.Address == a.String() && len(l.Inodes) > 0 {
			return l.Inodes, func(ino uint64, f func(fd int) error) error {
				if o.cfg.Borrow == nil {
					return reuse.ErrUnreachable
				}
				return o.cfg.Borrow(r, ino, f)
			}
		}
	}
	return nil, nil
}

// uphold gives the connections of an address to the program that serves there without an owner.
func (o *Owner) uphold(m *reuse.Member) error {
	serving, borrow := o.orphaned(m)
	if serving == nil {
		return nil
	}
	return m.Uphold(serving, borrow)
}

// watchOver waits for the predecessor's death, until this generation serves or ends.
func (o *Owner) watchOver(p *predecessor) {
	select {
	case <-p.session.Done():
	case <-o.drained:
		return
	}
	o.finding.Lock()
	defer o.finding.Unlock()
	if o.decided || o.before() != p {
		return
	}
	if err := o.findAgainLocked(context.Background()); err != nil {
		o.log.Warn("look for the serving generation", "error", err)
	}
}
