package owner

import (
	"context"
	"fmt"
	"slices"
	"time"

	"overlap/health"
	"overlap/reuse"
)

// Member returns the generation's member of the group of an address: the same for the same
// address. Strangers on the port are refused, and the serving generation readies its group.
func (o *Owner) Member(ctx context.Context, a reuse.Address) (*reuse.Member, error) {
	return o.MemberOf(ctx, a, o.cfg.UID)
}

// MemberOf is Member for sockets of the effective user uid.
func (o *Owner) MemberOf(ctx context.Context, a reuse.Address, uid int) (*reuse.Member, error) {
	o.joining.Lock()
	defer o.joining.Unlock()
	if m := o.member(a.Network, a.String()); m != nil && a.AddrPort.Port() != 0 {
		return m, nil
	}
	joined := &address{member: reuse.Open(a, uid)}
	if a.AddrPort.Port() != 0 {
		shared, err := o.compare(a)
		if err != nil {
			return nil, err
		}
		var theirs []uint64
		if shared != nil {
			joined.serves, joined.joined = shared.Inodes, true
			if theirs, err = o.haveRoom(ctx, a); err != nil {
				return nil, err
			}
		}
		if err := o.refuseStrangers(ctx, a, theirs); err != nil {
			return nil, err
		}
	}
	o.mu.Lock()
	o.addresses = append(o.addresses, joined)
	o.mu.Unlock()
	return joined.member, nil
}

// forget takes a member out of the generation's.
func (o *Owner) forget(m *reuse.Member) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.addresses = slices.DeleteFunc(o.addresses, func(a *address) bool { return a.member == m })
}

// Served is how many sockets the predecessor has at a member's address, placeholders not counted.
func (o *Owner) Served(m *reuse.Member) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, a := range o.addresses {
		if a.member == m {
			return len(a.serves)
		}
	}
	return 0
}

// member is the member of an address, or nil.
func (o *Owner) member(network, addr string) *reuse.Member {
	for _, m := range o.Members() {
		if a := m.Address(); a.Network == network && a.String() == addr {
			return m
		}
	}
	return nil
}

// Unix opens a unix socket at path; the name appears at the switch.
func (o *Owner) Unix(ctx context.Context, path string) (*reuse.UnixListener, error) {
	var mine []uint64
	if p := o.before(); p != nil {
		for _, l := range p.listeners {
			if l.Network == "unix" && l.Address == path {
				mine = l.Inodes
			}
		}
	}
	l, err := reuse.ListenUnix(ctx, path, func(ino uint64) bool { return slices.Contains(mine, ino) })
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	o.addresses = append(o.addresses, &address{unix: l, path: path, joined: len(mine) > 0})
	o.mu.Unlock()
	return l, nil
}

// compare finds the predecessor's listener on the same address. On one port addresses are
// equal or disjoint: the kernel picks a group by how specific its address is, before any
// program runs. What a program has beside an equal one it has in both generations.
func (o *Owner) compare(a reuse.Address) (*listener, error) {
	p := o.before()
	if p == nil {
		return nil, nil
	}
	var clash error
	for i, l := range p.listeners {
		if l.Network != a.Network {
			continue
		}
		b, err := reuse.ExactAddress(l.Network, l.Address, l.V6Only)
		if err != nil {
			continue
		}
		equal, overlap := reuse.Overlaps(a.AddrPort, b.AddrPort, a.V6Only, b.V6Only)
		switch {
		case equal:
			return &p.listeners[i], nil
		case overlap && clash == nil:
			clash = fmt.Errorf("%w: %s and %s of generation %d", ErrOverlap, a, b, p.number)
		}
	}
	return nil, clash
}

// RefuseStrangers is what MemberOf does before an address becomes the generation's, for one that becomes it later, and
// that no predecessor has.
func (o *Owner) RefuseStrangers(ctx context.Context, a reuse.Address) error {
	return o.refuseStrangers(ctx, a, nil)
}

// strangerTries is how often a listener that no generation knows is looked at: generations come,
// go and move placeholders while they are asked.
const strangerTries = 5

// refuseStrangers returns an error for a listener that clients of the address might reach and
// that is no generation's of this service. theirs are sockets that the predecessor has there.
func (o *Owner) refuseStrangers(ctx context.Context, a reuse.Address, theirs []uint64) error {
	var suspect *reuse.Stranger
	var silent error
	for try := range strangerTries {
		if try > 0 && ctx.Err() != nil {
			break
		}
		if try > 0 {
			time.Sleep(time.Duration(try) * 5 * time.Millisecond)
		}
		// Who is asked after the list was made knows all that is on it, unless it left.
		there, err := reuse.Sockets(a.Network, a.AddrPort.Port())
		if err != nil {
			// Without a way to see them the kernel's own refusal remains.
			o.log.Debug("listeners can't be listed", "error", err)
			return nil
		}
		if suspect, silent = o.suspect(ctx, a, there, theirs); suspect == nil {
			return nil
		}
	}
	if silent != nil {
		return fmt.Errorf("whose socket %s of %s is can't be told: %w", a, identified(*suspect), silent)
	}
	return &StrangerError{identified(*suspect)}
}

// identified adds the process.
func identified(s reuse.Stranger) reuse.Stranger {
	there, err := reuse.Listening(s.Network, s.Address.Port())
	if err != nil {
		return s
	}
	for _, t := range there {
		if t.Inode == s.Inode {
			return t
		}
	}
	return s
}

// suspect is a listener on the address that no generation knows. The error names one that lives and did not answer, whose
// it may be.
func (o *Owner) suspect(ctx context.Context, a reuse.Address, there []reuse.Stranger, theirs []uint64) (*reuse.Stranger, error) {
	there = slices.DeleteFunc(there, func(s reuse.Stranger) bool {
		_, overlap := reuse.Overlaps(a.AddrPort, s.Address, a.V6Only, s.V6Only)
		return !overlap || o.mine(s) || slices.Contains(theirs, s.Inode) || o.greeted(s)
	})
	if len(there) == 0 {
		return nil, nil
	}
	known, silent := o.known(ctx)
	there = slices.DeleteFunc(there, func(s reuse.Stranger) bool { return slices.Contains(known, s.Inode) })
	if len(there) == 0 {
		return nil, nil
	}
	// Its owner may have closed it before it was asked, which takes long where there are many.
	still, err := reuse.Sockets(a.Network, a.AddrPort.Port())
	for i, s := range there {
		if err != nil || slices.ContainsFunc(still, func(t reuse.Stranger) bool { return t.Inode == s.Inode }) {
			return &there[i], silent
		}
	}
	return nil, nil
}

// Claim says that a socket that is no member's yet is the generation's own, and no stranger's, until [Owner.Disclaim].
func (o *Owner) Claim(ino uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.claimed == nil {
		o.claimed = map[uint64]bool{}
	}
	o.claimed[ino] = true
}

// Disclaim takes a Claim back: the socket is a member's by now, or nobody's.
func (o *Owner) Disclaim(ino uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.claimed, ino)
}

func (o *Owner) claims(ino uint64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.claimed[ino]
}

// mine reports whether a listener is one of this generation's own.
func (o *Owner) mine(s reuse.Stranger) bool {
	if o.claims(s.Inode) {
		return true
	}
	return slices.ContainsFunc(o.Members(), func(m *reuse.Member) bool {
		return slices.Contains(m.Sockets(), s.Inode)
	})
}

// greeted reports whether a listener is one that the predecessor spoke of: then nobody need be
// asked, which takes long where there are many.
func (o *Owner) greeted(s reuse.Stranger) bool {
	p := o.before()
	return p != nil && slices.ContainsFunc(p.listeners, func(l listener) bool {
		return slices.Contains(l.Inodes, s.Inode) || slices.Contains(l.Sockets, s.Inode)
	})
}

// known are the inodes of the sockets of all generations that live, asked of their owners. The error names one that did not
// answer.
func (o *Owner) known(ctx context.Context) ([]uint64, error) {
	var silent error
	known := []uint64{0} // never empty
	if p := o.before(); p != nil {
		for _, l := range p.listeners {
			known = append(append(known, l.Inodes...), l.Sockets...)
		}
	}
	for _, r := range append(o.unreadable(), o.readable()...) {
		if r.Generation == o.number {
			continue
		}
		for _, l := range r.Listeners {
			known = append(known, l.Inodes...)
		}
		if o.dir.Owned(r.Generation) {
			theirs, err := o.ask(ctx, r.Generation)
			if err != nil && o.dir.Owned(r.Generation) {
				silent = fmt.Errorf("generation %d: %w", r.Generation, err)
			}
			known = append(known, theirs...)
		}
	}
	return known, silent
}

// Addresses are the generation's addresses that have a socket, as the health checks dial them, and those where
// nobody can.
func (o *Owner) Addresses() (all, unreachable []health.Address) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, a := range o.addresses {
		if a.unix != nil {
			all = append(all, health.Address{Network: "unix", Addr: a.path})
			continue
		}
		if a.coming() {
			continue
		}
		at := a.member.Address()
		to := health.Address{Network: at.Network, Addr: at.Local().String()}
		if at.Reachable() {
			all = append(all, to)
		} else {
			unreachable = append(unreachable, to)
		}
	}
	return all, unreachable
}

// listeners describes the generation's addresses as they are now.
func (o *Owner) listeners() []listener {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []listener
	for _, a := range o.addresses {
		if a.unix != nil {
			all = append(all, listener{Network: "unix", Address: a.path, Inodes: []uint64{a.unix.Inode()}})
			continue
		}
		at := a.member.Address()
		if at.AddrPort.Port() == 0 {
			continue
		}
		all = append(all, listener{Network: at.Network, Address: at.String(), V6Only: at.V6Only, UID: o.cfg.UID,
			Inodes: a.member.Inodes(), Sockets: a.member.Sockets(), Unused: !a.member.Used()})
	}
	return all
}
