package launcher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"overlap/reuse"
	"overlap/reuse/sockdiag"
)

// discover finds the sockets of a program that is not intercepted, once they listen (TCP), or are
// bound to a port that is wanted (UDP). A first generation has no gate until then.
func (s *sockets) discover() error {
	diag, err := sockdiag.Open()
	if err != nil {
		return err
	}
	defer diag.Close()
	all, err := diag.Listeners(0)
	if err != nil {
		return err
	}
	mine := s.inodes()
	for _, l := range all {
		if err := s.found("tcp", l, mine); err != nil {
			return err
		}
	}
	for _, w := range s.wanted() {
		if w.Network != "udp" {
			continue
		}
		all, err := diag.Datagrams(w.AddrPort.Port())
		if err != nil {
			return err
		}
		for _, d := range all {
			if err := s.found("udp", d, mine); err != nil {
				return err
			}
		}
	}
	return nil
}

// found makes a socket the generation's if it is one of the program's, by inode.
func (s *sockets) found(network string, d sockdiag.Socket, mine map[uint64]bool) error {
	if !mine[d.Inode] || d.Local.Port() == 0 || s.known(d.Inode) {
		return nil
	}
	a := reuse.Address{Network: network, AddrPort: d.Local, V6Only: d.V6Only}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s.g.owner.Claim(d.Inode)
	control := s.borrow(s.g.program.pid(), -1, d.Inode)
	gate := func() error {
		if err := control(func(fd int) error { return reuse.Share(fd, a) }); err != nil {
			// Out of reach its place in the group could not be found at a handover.
			return fmt.Errorf("reach the program's socket on %s (pidfd_getfd; in a container --cap-add SYS_PTRACE, or no --reuse off): %w", a, err)
		}
		return nil
	}
	if s.g.owner.Predecessor() > 0 {
		// The steering names the old ones, so nobody waits at it; and without a gate it would not count
		// what is dropped, by which the old generation finds the places of its own.
		if err := gate(); err != nil {
			return err
		}
	}
	m, err := s.g.owner.MemberOf(ctx, a, int(d.UID))
	if err == nil {
		err = m.ForUser(int(d.UID))
	}
	if err == nil {
		if s.g.owner.Predecessor() > 0 {
			err = s.g.owner.Anchor(m)
		} else {
			// It is there already, and must get all when the placeholder comes.
			err = m.AnchorBehind([]uint64{d.Inode}, func(_ uint64, f func(fd int) error) error { return control(f) })
		}
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w: %w", ErrNotShared, err)
	case err != nil:
		return err
	}
	if s.g.owner.Predecessor() == 0 {
		// The first one's clients wait from now on, until it is healthy.
		if err := gate(); err != nil {
			return err
		}
	}
	m.Adopt(d.Inode, control)
	s.mu.Lock()
	s.came = time.Now()
	s.mu.Unlock()
	s.g.owner.Disclaim(d.Inode)
	return nil
}

func (s *sockets) known(ino uint64) bool {
	return slices.ContainsFunc(s.g.owner.Members(), func(m *reuse.Member) bool { return slices.Contains(m.Inodes(), ino) })
}
