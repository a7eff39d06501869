package launcher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"

	"overlap/lifecycle/owner"
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
	if r.Program == nil || !r.Program.Alive() {
		return leftBehind(r)
	}
	tree, err := process.Tree(r.Program.PID)
	if err != nil {
		return []int{r.Program.PID}
	}
	return tree
}

// drainOrphans ends the programs without a launcher, once the generation that follows them serves. They have the
// drain time-out for it, but no longer than that generation for its own drain.
func (l *launcher) drainOrphans(g *generation) {
	for _, r := range g.owner.Orphans() {
		g.sockets.running.Go(func() {
			ctx, cancel := context.WithTimeout(g.orphans, g.req.set.DrainTimeout)
			defer cancel()
			err := endOrphan(ctx, &r, g.owner.Dir().UID(), g.req.set.StopDelay, cmp.Or(r.StopSignal, g.req.set.StopSignal))
			if owner.Orphan(r) { // its record tells the next one whose the sockets are
				l.log.Error("the old program still listens", "pid", r.Program.PID, "error", err)
				return
			}
			l.log.Info("the old program is gone", "pid", r.Program.PID)
			if r.Generation > 0 {
				g.owner.Dir().Remove(r.Generation)
			}
		})
	}
}

// endOrphan drains a program from outside: the stop signal is its main process's, or where that has ended another's.
// What is left when that one has ended, or ctx, is killed. The record is the word of user uid, so nothing happens to
// processes that he could not signal.
func endOrphan(ctx context.Context, r *state.Record, uid int, delay time.Duration, sig syscall.Signal) error {
	tree := func() []int {
		return slices.DeleteFunc(orphanTree(r), func(pid int) bool { return !process.Commands(uid, pid) })
	}
	hide := func(l state.Listener) {
		for _, ino := range l.Inodes {
			borrow(tree(), ino, reuse.Hide)
		}
	}
	left := func() []int { return notOurs(tree()) }
	known := process.Identities(left)
	if len(known) == 0 {
		if r.Program != nil && r.Program.Alive() {
			return fmt.Errorf("process %d: user %d could not signal it: %w", r.Program.PID, uid, syscall.EPERM)
		}
		return nil
	}
	h, err := process.Open(known[0])
	if errors.Is(err, os.ErrProcessDone) {
		process.KillAll(uid, known, left)
		return nil
	}
	if err != nil {
		return err
	}
	defer h.Close()
	clients := connections{tree: tree}
	for _, l := range r.Listeners {
		if a, err := reuse.ExactAddress(l.Network, l.Address, l.V6Only); err == nil {
			clients.addresses = append(clients.addresses, a)
		}
	}
	clients.before = clients.standing()
	for _, l := range r.Listeners {
		a, err := reuse.ExactAddress(l.Network, l.Address, l.V6Only)
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
		hide(l)
	}
	lingering, cancel := context.WithTimeout(ctx, delay)
	defer cancel()
	clients.awaitNone(lingering, nil)
	if clients.datagrams() {
		h.Wait(lingering)
	}
	if delay > 0 { // as reuse.Member.Release does for those that have an owner
		for _, l := range r.Listeners {
			if a, err := reuse.ExactAddress(l.Network, l.Address, l.V6Only); err == nil && l.Network == "udp" && !a.Is4() {
				hide(l)
			}
		}
	}
	known = process.Identities(left) // before their parents end
	if err := h.SignalAs(uid, sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	h.Wait(ctx)
	process.KillAll(uid, known, left)
	return nil
}

// notOurs are the processes without this one and those below it: a program may have started the launcher that
// follows it.
func notOurs(pids []int) []int {
	if !slices.Contains(pids, os.Getpid()) {
		return pids
	}
	ours, err := process.Tree(os.Getpid())
	if err != nil {
		ours = []int{os.Getpid()}
	}
	return slices.DeleteFunc(pids, func(pid int) bool { return slices.Contains(ours, pid) })
}

// leftBehind are the processes of a launched program whose main process has ended, and whose launcher too: those that
// have a socket of its record, and are in its process group or say whose they are; all of that group then; and the
// descendants of them.
func leftBehind(r *state.Record) (all []int) {
	if r.Program == nil || !r.Program.Here() || r.Generation == 0 { // an adopted server's group may be a pipeline's
		return nil
	}
	processes := process.All()
	group := inGroup(processes, r.Program.PID)
	found := slices.DeleteFunc(processes, func(pid int) bool {
		return !slices.Contains(group, pid) && !saysItIs(pid, r.Service, r.Generation) || !owner.Holds(pid, r)
	})
	if slices.ContainsFunc(found, func(pid int) bool { return slices.Contains(group, pid) }) {
		found = append(found, group...)
	}
	for _, pid := range found {
		if tree, err := process.Tree(pid); err == nil {
			all = append(all, tree...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// saysItIs reports whether the environment of a process is that of a generation's program.
func saysItIs(pid int, service string, generation int) bool {
	env := process.Environment(pid)
	return variable(env, nameVariable) == service && variable(env, generationVariable) == strconv.Itoa(generation)
}

// StopOrphan ends the program of a generation whose launcher is dead, by the stop signal that this one had. What is left of it when ctx ends is killed. uid
// is the user who wrote the record: processes that he could not signal are left alone, with an error that wraps
// syscall.EPERM.
func StopOrphan(ctx context.Context, r state.Record, uid int) error {
	return endOrphan(ctx, &r, uid, 0, cmp.Or(r.StopSignal, DefaultStopSignal))
}
