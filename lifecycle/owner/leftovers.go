package owner

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"syscall"
	"time"

	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
	"overlap/reuse"
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

// complete adds sockets of the record's program that its launcher did not live to record: those on
// an address of the record.
func complete(r *state.Record) {
	if r.Program == nil || !r.Program.Alive() {
		return
	}
	tree, err := process.Tree(r.Program.PID)
	if err != nil {
		return
	}
	for i, l := range r.Listeners {
		a, err := reuse.ExactAddress(l.Network, l.Address, l.V6Only)
		if err != nil {
			continue
		}
		there, _ := reuse.Listening(a.Network, a.AddrPort.Port())
		for _, s := range there {
			if s.Address == a.AddrPort && slices.Contains(tree, s.PID) && !slices.Contains(r.Listeners[i].Inodes, s.Inode) {
				r.Listeners[i].Inodes = append(r.Listeners[i].Inodes, s.Inode)
			}
		}
	}
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
	for i := range all {
		complete(&all[i])
	}
	if r := o.cfg.Adopt; r != nil {
		all = append(all, *r)
	}
	return all
}

// Tidy removes what dead generations left that nobody takes over: records, and programs that were
// starting when their launchers died. It waits for a handover that is under way.
func Tidy(ctx context.Context, dir *state.Dir, log *slog.Logger) error {
	lock, err := dir.Lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	records, _ := dir.Generations()
	return tidy(dir, records, log)
}

// tidy is Tidy under the handover lock.
func tidy(dir *state.Dir, records []state.Record, log *slog.Logger) error {
	for _, r := range records {
		if dir.Owned(r.Generation) || Orphan(r) {
			continue
		}
		endUnchecked(r, log)
		if err := dir.Remove(r.Generation); err != nil {
			return err
		}
	}
	return nil
}

// endUnchecked kills the program of a generation that was starting when its launcher died: it
// gets no client, and nobody would ever check it.
func endUnchecked(r state.Record, log *slog.Logger) {
	if !r.Launched || r.Program == nil || !unchecked(r) {
		return
	}
	h, err := process.Open(*r.Program)
	if err != nil {
		return // it is gone
	}
	defer h.Close()
	log.Warn("a program was starting when its launcher died, it is killed", "generation", r.Generation, "pid", r.Program.PID)
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
		log.Warn("it does not end", "pid", r.Program.PID, "error", err)
	}
}
