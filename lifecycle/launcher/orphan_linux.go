package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
	"overlap/reuse"
	"overlap/reuse/sockdiag"
)

// An orphan is a program that serves and has no launcher: its launcher died, or it never had
// one and is adopted. It is steered with its own sockets, and drained by the launcher of the
// generation that follows.

// adoptee describes the server that --adopt names, for the launcher's first generation.
func (l *launcher) adoptee(g *generation) (*state.Record, error) {
	if l.opt.Adopt == 0 || g.req.token != "" {
		return nil, nil
	}
	r, err := adopt(l.opt.Adopt)
	if err != nil {
		return nil, fmt.Errorf("adopt pid %d: %w", l.opt.Adopt, err)
	}
	return r, nil
}

// adopt makes the sockets of a running server share their ports. A new bind to the port needs
// it of every socket there, established connections too. When it fails nothing has changed
// for the server's clients.
func adopt(pid int) (*state.Record, error) {
	id, err := process.Of(pid)
	if err != nil {
		return nil, err
	}
	tree, err := process.Tree(pid)
	if err != nil {
		return nil, err
	}
	diag, err := sockdiag.Open()
	if err != nil {
		return nil, err
	}
	defer diag.Close()
	listeners, err := diag.Listeners(0)
	if err != nil {
		return nil, err
	}
	mine := map[uint64]bool{}
	for _, p := range tree {
		inodes, err := sockdiag.Inodes(p)
		if err != nil {
			return nil, fmt.Errorf("its descriptors can't be read: %w", err)
		}
		for _, ino := range inodes {
			mine[ino] = true
		}
	}
	r := &state.Record{State: state.Serving, Launched: true, Owner: id, Program: &id}
	for _, s := range listeners {
		if !mine[s.Inode] {
			continue
		}
		a := reuse.Address{Network: "tcp", AddrPort: s.Local, V6Only: s.V6Only}
		if err := adoptListener(diag, tree, a, s.Inode); err != nil {
			return nil, fmt.Errorf("listener on %s: %w", a, err)
		}
		i := slices.IndexFunc(r.Listeners, func(l state.Listener) bool { return l.Address == a.String() })
		if i < 0 {
			r.Listeners = append(r.Listeners, state.Listener{Network: "tcp", Address: a.String()})
			i = len(r.Listeners) - 1
		}
		r.Listeners[i].Inodes = append(r.Listeners[i].Inodes, s.Inode)
	}
	if len(r.Listeners) == 0 {
		return nil, errors.New("it does not listen on any TCP address")
	}
	return r, nil
}

// errMPTCP says why a server can't be adopted.
var errMPTCP = errors.New("it is an MPTCP socket, which can't be steered; a Go server listens without it when it is started with GODEBUG=multipathtcp=0")

func adoptListener(diag *sockdiag.Conn, tree []int, a reuse.Address, ino uint64) error {
	err := borrow(tree, ino, func(fd int) error {
		if proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err == nil && proto == unix.IPPROTO_MPTCP {
			return errMPTCP
		}
		return reuse.ShareOpen(fd, a.Is4())
	})
	if err != nil {
		return err
	}
	// What is accepted while this goes on has the option from its listener.
	conns, err := diag.Connections(a.AddrPort.Port())
	if err != nil {
		return err
	}
	for _, c := range conns {
		if c.Inode == 0 {
			continue
		}
		err := borrow(tree, c.Inode, func(fd int) error {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		})
		if err != nil && !errors.Is(err, reuse.ErrUnreachable) {
			return err
		}
	}
	return nil
}

// borrowFromOrphan gets hold of a socket of a program without a launcher for the length of a call.
func borrowFromOrphan(r *state.Record, ino uint64, f func(fd int) error) error {
	return borrow(orphanTree(r), ino, f)
}

func orphanTree(r *state.Record) []int {
	if r.Program == nil {
		return nil
	}
	tree, err := process.Tree(r.Program.PID)
	if err != nil {
		return []int{r.Program.PID}
	}
	return tree
}

// readyOrphan waits until nothing but the orphan's own sockets keeps a new bind from its ports:
// TIME_WAIT of a server that had no SO_REUSEPORT runs out within a minute.
func (l *launcher) readyOrphan(ctx context.Context, g *generation) error {
	r := g.owner.Orphan()
	if r == nil || l.opt.Adopt == 0 {
		return nil
	}
	for _, s := range r.Listeners {
		a, err := reuse.ExactAddress(s.Network, s.Address, false)
		if err != nil {
			return err
		}
		said := false
		for {
			err := reuse.TryBind(a)
			if err == nil {
				break
			}
			if !errors.Is(err, syscall.EADDRINUSE) {
				return fmt.Errorf("share %s: %w", a, err)
			}
			if !said {
				said = true
				l.log.Info("connections in TIME_WAIT hold the port, waiting for them to run out", "address", a)
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("share %s: connections in TIME_WAIT hold it: %w", a, err)
			case <-time.After(100 * time.Millisecond):
			}
			// Accepted meanwhile, with the option set on its listener after it had come.
			if _, err := adopt(l.opt.Adopt); err != nil {
				return err
			}
		}
	}
	return nil
}

// drainOrphans ends the programs without a launcher, once the generation that follows them serves.
func (l *launcher) drainOrphans(g *generation) {
	for _, r := range g.owner.Orphans() {
		g.sockets.running.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), g.req.set.DrainTimeout)
			defer cancel()
			endOrphan(ctx, &r, g.req.set.StopDelay, g.req.set.StopSignal)
			l.log.Info("the old program is gone", "pid", r.Program.PID)
			if r.Generation > 0 {
				g.owner.Dir().Remove(r.Generation)
			}
		})
	}
}

// endOrphan drains a program from outside.
func endOrphan(ctx context.Context, r *state.Record, delay time.Duration, sig syscall.Signal) {
	if r.Program == nil || !r.Program.Alive() {
		return
	}
	h, err := process.Open(*r.Program)
	if err != nil {
		return
	}
	defer h.Close()
	clients := connections{tree: func() []int { return orphanTree(r) }}
	for _, l := range r.Listeners {
		a, err := reuse.ExactAddress(l.Network, l.Address, false)
		if err != nil {
			continue
		}
		clients.addresses = append(clients.addresses, a)
		var queues []reuse.Queue
		for _, ino := range l.Inodes {
			queues = append(queues, reuse.InodeQueue(l.Network, a.AddrPort.Port(), ino))
		}
		reuse.AwaitBacklog(ctx, a.AddrPort.Port(), queues...)
		if l.Network == "udp" {
			continue // hidden it could answer nothing
		}
		for _, ino := range l.Inodes {
			borrowFromOrphan(r, ino, reuse.Hide)
		}
	}
	lingering, cancel := context.WithTimeout(ctx, delay)
	defer cancel()
	clients.awaitNone(lingering, nil)
	if clients.datagrams() {
		h.Wait(lingering)
	}
	tree := orphanTree(r)
	h.Signal(sig)
	if err := h.Wait(ctx); err != nil {
		for _, pid := range slices.Backward(tree) {
			if p, err := os.FindProcess(pid); err == nil {
				p.Kill()
			}
		}
	}
}

// StopOrphan ends the program of a generation whose launcher is dead.
func StopOrphan(ctx context.Context, r state.Record) {
	endOrphan(ctx, &r, 0, DefaultStopSignal)
}
