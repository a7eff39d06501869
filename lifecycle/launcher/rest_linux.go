package launcher

import (
	"context"
	"maps"
	"time"

	"golang.org/x/sys/unix"

	"overlap/reuse"
	"overlap/reuse/sockdiag"
)

const (
	// partingShare of the stop delay goes to connections that are kept and do not end by themselves:
	// the last fifth, so that those that would end have had their time.
	partingShare = 5
	// restTime is how long nothing must have moved on a connection until it counts as between two
	// requests.
	restTime = 100 * time.Millisecond
	// restLook is between two looks at the connections.
	restLook = 20 * time.Millisecond
)

// part ends connections between two requests, until none is left or ctx ends, and returns how many
// are left: the stop signal comes next, and a program without a graceful shutdown cuts whatever is
// under way then. The clients see what a keep-alive time-out looks like. Where the program's
// descriptors can't be had nothing happens.
func (c connections) part(ctx context.Context, gone <-chan struct{}) int {
	left, tree := c.open()
	pause := restLook
	if !readable(tree) {
		pause = longestPause // each look is at all connections of the machine
	}
	for len(left) > 0 {
		endResting(left, tree)
		select {
		case <-ctx.Done():
			return len(left)
		case <-gone:
			return 0
		case <-time.After(pause):
		}
		held := heldBy(tree)
		maps.DeleteFunc(left, func(ino uint64, _ bool) bool { return !held[ino] })
		if len(left) == 0 {
			left, tree = c.open()
		}
	}
	return 0
}

// endResting ends those of the connections that rest.
func endResting(inodes map[uint64]bool, tree []int) {
	for _, pid := range tree {
		held, err := sockdiag.Descriptors(pid)
		if err != nil {
			continue // it ended
		}
		pidfd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		for _, d := range held {
			if inodes[d.Inode] {
				lend(pidfd, d, func(fd int) { reuse.EndResting(fd, restTime) })
			}
		}
		unix.Close(pidfd)
	}
}
