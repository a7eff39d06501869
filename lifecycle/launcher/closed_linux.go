package launcher

import (
	"context"
	"slices"
	"time"

	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
	"overlap/reuse"
	"overlap/reuse/sockdiag"
)

// A program may close sockets while it serves: it re-opens them, loses a worker, or gives up a
// port. The kernel tells nobody, and the place of what went is a placeholder's, where clients
// wait. So the program is looked at when a process of its that has bound a socket ends; for a while
// after it got a signal, or has bound an address once more; and before somebody is told of the sockets (a
// status, a newcomer). Nothing looks at a program where nothing happens.

// A program is looked at so soon after something happened that listeners may be closed for, then in
// twice the time, and so on for about 10 s.
const (
	firstLook = 20 * time.Millisecond
	lastLook  = 10 * time.Second
)

// expect has the program looked at for a while.
func (s *sockets) expect() { s.lookIn(firstLook) }

func (s *sockets) lookIn(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.looking != nil {
		s.looking.Stop() // one row of looks is enough for many signals
	}
	s.looking = time.AfterFunc(d, func() {
		s.poke()
		if d *= 2; d < lastLook {
			s.lookIn(d)
		}
	})
}

// watch has the program looked at when one of its processes ends, which may be the only one that
// had a socket. The launcher waits for the main one anyway.
func (s *sockets) watch(pid int) {
	s.mu.Lock()
	known := s.watched[pid]
	s.watched[pid] = true
	s.mu.Unlock()
	if known || pid == s.g.running().pid() {
		return
	}
	forget := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watched, pid)
	}
	id, err := process.Of(pid)
	if err != nil {
		forget()
		return
	}
	h, err := process.Open(id)
	if err != nil {
		forget()
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.running.Go(func() {
		select {
		case <-s.stop:
			cancel()
		case <-ctx.Done(): // the process has ended
		}
	})
	s.running.Go(func() {
		defer h.Close()
		defer cancel()
		if h.Wait(ctx) == nil {
			forget()
			s.review()
		}
	})
}

// dying is how long a program that ends may take from its first closed listener to its end.
const dying = 50 * time.Millisecond

// review has the groups follow after the program closed sockets while it serves. One that has none
// any more is about to end, or has: its clients are to wait.
func (s *sockets) review() {
	if s.g.owner.State() != state.Serving || s.g.holding.Load() {
		return
	}
	closed, left := s.closed()
	unused := func() bool { return slices.ContainsFunc(s.g.owner.Members(), s.unused) }
	if left == 0 || len(closed) == 0 && !unused() {
		return
	}
	s.sayFollows(false, false)
	if !unused() {
		return
	}
	select {
	case <-s.g.program.gone():
		return
	case <-s.stop:
		return
	case <-time.After(dying):
	}
	if _, left = s.closed(); left > 0 {
		s.sayFollows(false, true)
	}
}

// follows has the groups follow after the program's sockets: some came, or it closed some. forget
// gives up the addresses that have none any more.
func (s *sockets) follows(came, forget bool) error {
	s.joining.Lock()
	defer s.joining.Unlock()
	closed, _ := s.closed()
	for ino, m := range closed {
		m.Drop(ino)
	}
	if !came && !forget && len(closed) == 0 {
		return nil
	}
	return s.g.owner.Changed(came, func(m *reuse.Member) bool { return !forget || s.awaited(m) })
}

// sayFollows is follows where nobody tries again.
func (s *sockets) sayFollows(came, forget bool) {
	if err := s.follows(came, forget); err != nil {
		s.g.log.Warn("the program's sockets changed, and clients may not reach them", "error", err)
	}
}

// unused reports whether an address has neither a socket nor one that comes.
func (s *sockets) unused(m *reuse.Member) bool { return !s.awaited(m) && len(m.Inodes()) == 0 }

// awaited reports whether a socket of an address is bound and does not listen yet. One that is not awaited any more is
// among the member's.
func (s *sockets) awaited(m *reuse.Member) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pending {
		if p.member == m {
			return true
		}
	}
	return false
}

// closed are the sockets that the program has closed, by inode, and how many it still has.
func (s *sockets) closed() (closed map[uint64]*reuse.Member, left int) {
	diag, err := sockdiag.Open()
	if err != nil {
		return nil, 0
	}
	defer diag.Close()
	closed = map[uint64]*reuse.Member{}
	for _, m := range s.g.owner.Members() {
		list := diag.Listeners
		if m.Address().Network == "udp" {
			list = diag.Datagrams
		}
		known := m.Inodes() // one that comes while the kernel lists them is not on its list
		there, err := list(m.Address().AddrPort.Port())
		if err != nil {
			continue
		}
		for _, ino := range known {
			if slices.ContainsFunc(there, func(d sockdiag.Socket) bool { return d.Inode == ino }) {
				left++
			} else {
				closed[ino] = m
			}
		}
	}
	return closed, left
}
