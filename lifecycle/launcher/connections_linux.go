package launcher

import (
	"context"
	"errors"
	"fmt"
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

	// Whose a connection is, is not known where its process may not be read: one that became another user, under a
	// launcher without ptrace access, as in a container. It counts if it was there when the drain began.
	before map[uint64]bool // those that were, by cookie; nil: the program does not drain
	theirs map[uint64]bool // those that count for other generations by this
}

// connections are those of the generation's program.
func (s *sockets) connections() connections {
	c := connections{tree: s.g.program.tree, before: s.remembered(), theirs: map[uint64]bool{}}
	for _, other := range s.g.l.generations() {
		if other != s.g {
			maps.Copy(c.theirs, other.sockets.remembered())
		}
	}
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

// streams are the TCP addresses' ports and families.
func (c connections) streams() (ports []uint16, families []uint8) {
	for _, a := range c.addresses {
		if a.Network == "tcp" {
			ports, families = append(ports, a.AddrPort.Port()), append(families, a.Family())
		}
	}
	slices.Sort(families)
	return ports, slices.Compact(families)
}

// open returns the inodes of those that are open, with the processes they may belong to.
func (c connections) open() (inodes map[uint64]bool, tree []int) {
	ports, _ := c.streams()
	if len(ports) == 0 {
		return nil, nil
	}
	tree = c.tree()
	if inodes, ok := lookAtEach(tree, ports); ok {
		return inodes, tree
	}
	return c.listAll(tree), tree
}

// remembered is connections.before of the generation's drain.
func (s *sockets) remembered() map[uint64]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.before
}

// beginDrain remembers which connections there are, where that is needed. Those that the new generation has got since
// the switch are among them: a drain waits rather for too many.
func (s *sockets) beginDrain() {
	there := s.connections().standing()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = there
}

// endDrain is for a generation that serves again.
func (s *sockets) endDrain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = nil
}

// standing are the connections at the addresses, by cookie, half-open ones too; nil where the program's own can be told, or
// none can.
func (c connections) standing() map[uint64]bool {
	ports, families := c.streams()
	if len(ports) == 0 || readable(c.tree()) {
		return nil
	}
	diag, err := sockdiag.Open()
	if err != nil {
		return nil
	}
	defer diag.Close()
	all := map[uint64]bool{}
	// In this order: one that is half-open becomes a connection.
	for _, list := range []func(uint16, ...uint8) ([]sockdiag.Socket, error){diag.HalfOpen, diag.Connections} {
		there, err := list(onlyPort(ports), families...)
		if err != nil {
			return nil
		}
		for _, s := range there {
			if slices.Contains(ports, s.Local.Port()) && !c.theirs[s.Cookie] {
				all[s.Cookie] = true
			}
		}
	}
	return all
}

// onlyPort is 0 where there are several.
func onlyPort(ports []uint16) uint16 {
	if one := slices.Compact(slices.Sorted(slices.Values(ports))); len(one) == 1 {
		return one[0]
	}
	return 0
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
func (c connections) listAll(tree []int) map[uint64]bool {
	ports, families := c.streams()
	diag, err := sockdiag.Open()
	if err != nil {
		return nil
	}
	defer diag.Close()
	there, err := diag.Connections(onlyPort(ports), families...)
	if err != nil {
		return nil
	}
	there = slices.DeleteFunc(there, func(s sockdiag.Socket) bool { return !slices.Contains(ports, s.Local.Port()) })
	if len(there) == 0 {
		return nil
	}
	held, all := heldBy(tree), readable(tree)
	inodes := map[uint64]bool{}
	for _, s := range there {
		if held[s.Inode] || !all && s.Inode != 0 && c.supposed(s.Cookie) {
			inodes[s.Inode] = true
		}
	}
	return inodes
}

// supposed reports whether a connection counts whose process may not be read.
func (c connections) supposed(cookie uint64) bool {
	return !c.theirs[cookie] && (c.before == nil || c.before[cookie])
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

// readable reports whether it can be known which sockets some processes hold.
func readable(pids []int) bool {
	return !slices.ContainsFunc(pids, func(pid int) bool {
		// The same access as to what descriptors mean (proc_pid_readlink in fs/proc/base.c), and always there.
		_, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		return errors.Is(err, os.ErrPermission)
	})
}
