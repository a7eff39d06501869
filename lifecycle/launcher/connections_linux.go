package launcher

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"overlap/reuse"
	"overlap/reuse/sockdiag"
)

// connections are the client connections of a program at some of its addresses.
type connections struct {
	addresses []reuse.Address
	tree      func() []int // the program's processes
}

// connections are those of the generation's program.
func (s *sockets) connections() connections {
	c := connections{tree: s.g.program.tree}
	if s.g.owner != nil {
		for _, m := range s.g.owner.Members() {
			c.addresses = append(c.addresses, m.Address())
		}
	}
	return c
}

// datagrams reports whether there may be clients without a connection. Nobody sees whether the program still owes one
// an answer, so it gets all the time that there is.
func (c connections) datagrams() bool {
	return slices.ContainsFunc(c.addresses, func(a reuse.Address) bool { return a.Network == "udp" })
}

// fewSockets is how many sockets of a program are looked at one by one. With more the kernel's list
// of all connections of the machine is the shorter way; it is a walk through its whole table.
const fewSockets = 2000

// open returns the inodes of those that are open, with the processes they may belong to.
func (c connections) open() (inodes map[uint64]bool, tree []int) {
	var ports []uint16
	var families []uint8
	for _, a := range c.addresses {
		if a.Network == "tcp" {
			ports, families = append(ports, a.AddrPort.Port()), append(families, a.Family())
		}
	}
	if len(ports) == 0 {
		return nil, nil
	}
	tree = c.tree()
	if inodes, ok := lookAtEach(tree, ports); ok {
		return inodes, tree
	}
	return listAll(tree, ports, families), tree
}

// lookAtEach finds them among the sockets of the processes; false where there are too many, or they
// can't be looked at.
func lookAtEach(tree []int, ports []uint16) (map[uint64]bool, bool) {
	found := map[uint64]bool{}
	looked := map[uint64]bool{}
	for _, pid := range tree {
		held, err := sockdiag.Descriptors(pid)
		if errors.Is(err, os.ErrNotExist) {
			continue // it ended
		}
		if err != nil || len(held) > fewSockets {
			return nil, false
		}
		pidfd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		for _, d := range held {
			if looked[d.Inode] {
				continue
			}
			looked[d.Inode] = true
			is, err := isConnection(pidfd, d, ports)
			if err != nil {
				unix.Close(pidfd)
				return nil, false
			}
			if is {
				found[d.Inode] = true
			}
		}
		unix.Close(pidfd)
	}
	return found, true
}

// isConnection reports whether a descriptor is one at one of the ports.
func isConnection(pidfd int, d sockdiag.Descriptor, ports []uint16) (is bool, err error) {
	err = lend(pidfd, d, func(fd int) {
		open, port, oerr := reuse.OpenConnection(fd)
		is = oerr == nil && open && slices.Contains(ports, port)
	})
	if err == unix.EBADF || err == unix.ESRCH {
		return false, nil // closed, or the process ended
	}
	return is, err
}

// listAll asks the kernel once for all ports.
func listAll(tree []int, ports []uint16, families []uint8) map[uint64]bool {
	diag, err := sockdiag.Open()
	if err != nil {
		return nil
	}
	defer diag.Close()
	var port uint16 // all
	if len(slices.Compact(slices.Sorted(slices.Values(ports)))) == 1 {
		port = ports[0]
	}
	slices.Sort(families)
	families = slices.Compact(families)
	there, err := diag.Connections(port, families...)
	if err != nil {
		return nil
	}
	there = slices.DeleteFunc(there, func(s sockdiag.Socket) bool { return !slices.Contains(ports, s.Local.Port()) })
	if len(there) == 0 {
		return nil
	}
	held := heldBy(tree)
	inodes := map[uint64]bool{}
	for _, s := range there {
		if held[s.Inode] {
			inodes[s.Inode] = true
		}
	}
	return inodes
}

func (c connections) count() int {
	inodes, _ := c.open()
	return len(inodes)
}

// longestPause is between two looks at connections that are waited for.
const longestPause = 200 * time.Millisecond

// awaitNone waits until none is open, and returns how many are when it stopped waiting. The
// program must get no new ones meanwhile: then those it had can only become fewer, and it takes no
// more than a look at its descriptors to see it. A process that none of this knows of may have
// taken one over, so the kernel has the last word.
func (c connections) awaitNone(ctx context.Context, gone <-chan struct{}) int {
	left, tree := c.open()
	for pause := 5 * time.Millisecond; len(left) > 0; pause = min(pause*2, longestPause) {
		select {
		case <-ctx.Done():
			return len(left)
		case <-gone:
			return 0
		case <-time.After(pause):
		}
		if pause < longestPause {
			held := heldBy(tree)
			maps.DeleteFunc(left, func(ino uint64, _ bool) bool { return !held[ino] })
			if len(left) > 0 {
				continue
			}
		}
		left, tree = c.open()
	}
	return 0
}

// heldBy are the inodes of all sockets of some processes.
func heldBy(pids []int) map[uint64]bool {
	all := map[uint64]bool{}
	for _, pid := range pids {
		inodes, err := sockdiag.Inodes(pid)
		if err != nil {
			continue // it ended, or is another user's
		}
		for _, ino := range inodes {
			all[ino] = true
		}
	}
	return all
}
