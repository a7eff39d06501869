package launcher

import (
	"context"
	"os"
	"slices"
	"syscall"
	"time"

	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
	"overlap/reuse"
)

// An orphan is a program that serves and has no launcher: its launcher died, or it never had
// one and is adopted. It is steered with its own sockets, and drained by the launcher of the
// generation that follows.

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
		if a, err := reuse.ExactAddress(l.Network, l.Address, false); err == nil {
			clients.addresses = append(clients.addresses, a)
		}
	}
	clients.before = clients.standing()
	for _, l := range r.Listeners {
		a, err := reuse.ExactAddress(l.Network, l.Address, false)
		if err != nil {
			continue
		}
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
	if delay > 0 {
		hideDatagrams(r)
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

// hideDatagrams is what [reuse.Member.Release] does for those that have an owner.
func hideDatagrams(r *state.Record) {
	for _, l := range r.Listeners {
		if a, err := reuse.ExactAddress(l.Network, l.Address, false); err == nil && l.Network == "udp" && !a.Is4() {
			for _, ino := range l.Inodes {
				borrowFromOrphan(r, ino, reuse.Hide)
			}
		}
	}
}

// StopOrphan ends the program of a generation whose launcher is dead.
func StopOrphan(ctx context.Context, r state.Record) {
	endOrphan(ctx, &r, 0, DefaultStopSignal)
}
