package launcher

import (
	"context"
	"slices"

	"overlap/reuse"
)

// followWay has the groups follow once this machine gets its first IPv6 address, where one of them takes IPv6 alone:
// nothing could tell its places before. It returns at once, and does nothing where nothing is to wait for.
func (s *sockets) followWay() {
	members := s.g.owner.Members()
	i := slices.IndexFunc(members, func(m *reuse.Member) bool { return !m.Address().Reachable() })
	if i < 0 || s.awaitsWay {
		return
	}
	s.awaitsWay = true
	ctx, cancel := context.WithCancel(context.Background())
	s.running.Go(func() {
		<-s.stop
		cancel()
	})
	s.running.Go(func() {
		err := reuse.AwaitReachable(ctx, members[i].Address())
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.g.log.Warn("clients by IPv6 may have to wait for the next reload", "error", err)
			return
		}
		s.sayFollows(true, false)
	})
}
