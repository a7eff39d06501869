package owner

import (
	"context"
	"os"
	"slices"
	"syscall"
	"time"

	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
)

// A launcher that was killed leaves the programs of its generations behind. What serves or
// drains is drained by whoever comes next; what was only starting is killed.

// Orphan reports whether the generation of a record has no owner any more, which its caller
// knows, but a program whose sockets still listen, and that was checked.
func Orphan(r state.Record) bool {
	if !r.Launched || unchecked(r) {
		return false
	}
	for _, l := range r.Listeners {
		for _, ino := range l.Inodes {
			if listens(l.Network, l.Address, ino) {
				return true
			}
		}
	}
	return false
}

// unchecked reports whether the generation of a record never came to its switch, which is
// recorded before it happens.
func unchecked(r state.Record) bool { return r.State == state.Starting && r.Switched.IsZero() }

// Orphans are the records of programs whose launchers died: the one that served, and those that
// were draining.
func (o *Owner) Orphans() []state.Record {
	all := slices.DeleteFunc(o.readable(), func(r state.Record) bool {
		return r.Generation == o.number || o.dir.Owned(r.Generation) || !Orphan(r)
	})
	if r := o.cfg.Adopt; r != nil {
		all = append(all, *r)
	}
	return all
}

// endUnchecked kills the program of a generation that was starting when its launcher died: it
// gets no client, and nobody would ever check it.
func (o *Owner) endUnchecked(r state.Record) {
	if !r.Launched || r.Program == nil || !unchecked(r) {
		return
	}
	h, err := process.Open(*r.Program)
	if err != nil {
		return // it is gone
	}
	defer h.Close()
	o.log.Warn("a program was starting when its launcher died, it is killed", "generation", r.Generation, "pid", r.Program.PID)
	tree, _ := process.Tree(r.Program.PID)
	h.Signal(syscall.SIGKILL)
	for _, pid := range tree {
		if p, err := os.FindProcess(pid); err == nil && pid != r.Program.PID {
			p.Kill()
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := h.Wait(ctx); err != nil {
		o.log.Warn("it does not end", "pid", r.Program.PID, "error", err)
	}
}
