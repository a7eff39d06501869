package reuse

import (
	"context"
	"slices"
	"time"

	"overlap/reuse/sockdiag"
)

// AwaitAccepted waits until the accept queues of the members' TCP sockets are empty: then whoever
// listens accepts, too, once somebody has connected. The kernel completes connections on its own, so
// a probe that only connects says nothing of that. The error is ctx's, or what keeps the queues from
// being seen.
func AwaitAccepted(ctx context.Context, members ...*Member) error {
	diag, err := sockdiag.Open()
	if err != nil {
		return err
	}
	defer diag.Close()
	var port uint16 // all
	var inodes []uint64
	var families []uint8
	for _, m := range members {
		a := m.Address()
		if a.Network != "tcp" {
			continue
		}
		if port = a.AddrPort.Port(); len(inodes) > 0 {
			port = 0
		}
		inodes = append(inodes, m.Inodes()...)
		families = append(families, a.Family())
	}
	slices.Sort(families)
	families = slices.Compact(families)
	for pause := 250 * time.Microsecond; len(inodes) > 0; pause = min(2*pause, 5*time.Millisecond) {
		there, err := diag.Listeners(port, families...)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(there, func(s sockdiag.Socket) bool { return s.RQueue > 0 && slices.Contains(inodes, s.Inode) }) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
	return nil
}
