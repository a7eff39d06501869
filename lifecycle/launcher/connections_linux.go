package launcher

import (
	"context"
	"maps"
	"slices"
	"time"

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

// open returns the inodes of those that are open, with the processes they may belong to. It asks
// the kernel once for all addresses, since each answer takes it a walk through its whole table, and
// looks at every process of the machine.
func (c connections) open() (inodes map[uint64]bool, tree []int) {
	var ports []uint16
	var families []uint8
	for _, a := range c.addresses {
		if a.Network != "tcp" {
			continue
		}
		ports = append(ports, a.AddrPort.Port())
		family := uint8(sockdiag.FamilyIPv6)
		if a.Is4() {
			family = sockdiag.FamilyIPv4
		}
		if !slices.Contains(families, family) {
			families = append(families, family)
		}
	}
	if len(ports) == 0 {
		return nil, nil
	}
	diag, err := sockdiag.Open()
	if err != nil {
		return nil, nil
	}
	defer diag.Close()
	var port uint16 // all
	if ports = slices.Compact(slices.Sorted(slices.Values(ports))); len(ports) == 1 {
		port = ports[0]
	}
	there, err := diag.Connections(port, families...)
	if err != nil {
		return nil, nil
	}
	there = slices.DeleteFunc(there, func(s sockdiag.Socket) bool { return !slices.Contains(ports, s.Local.Port()) })
	if len(there) == 0 {
		return nil, nil
	}
	tree = c.tree()
	held := heldBy(tree)
	inodes = map[uint64]bool{}
	for _, s := range there {
		if held[s.Inode] {
			inodes[s.Inode] = true
		}
	}
	return inodes, tree
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
