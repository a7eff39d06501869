package owner

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"syscall"

	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
	"overlap/reuse"
	"overlap/reuse/sockdiag"
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
		endUnchecked(dir, r, log)
		if err := dir.Remove(r.Generation); err != nil {
			return err
		}
	}
	return nil
}

// endUnchecked kills the program of a generation that was starting when its launcher died, and what its main process has
// left behind if that has died too: it gets no client, and nobody would ever check it.
func endUnchecked(dir *state.Dir, r state.Record, log *slog.Logger) {
	if !r.Launched || r.Program == nil || !r.Program.Here() || !unchecked(r) {
		return
	}
	left := func() []int { return uncheckedProcesses(dir, &r) }
	known := process.Identities(left)
	if len(known) == 0 {
		return // it is gone
	}
	log.Warn("a program was starting when its launcher died, it is killed", "generation", r.Generation, "pid", r.Program.PID)
	process.KillAll(os.Geteuid(), known, left)
	if r.Program.Alive() {
		log.Warn("it does not end", "pid", r.Program.PID)
	}
}

// uncheckedProcesses are those of such a program, without this one and those below it: of a main process that has ended
// those that have a socket of its record and are in its group, or that say whose they are.
func uncheckedProcesses(dir *state.Dir, r *state.Record) (all []int) {
	roots := []int{r.Program.PID}
	if !r.Program.Alive() {
		owner := "OVERLAP_OWNER=" + dir.LauncherPath(r.Generation)
		roots = slices.DeleteFunc(process.All(), func(pid int) bool {
			id, err := process.Of(pid)
			if err != nil || id.Start < r.Program.Start { // left by an earlier generation of that number
				return true
			}
			group, err := syscall.Getpgid(pid)
			return (err != nil || group != r.Program.PID || !Holds(pid, r)) && !slices.Contains(process.Environment(pid), owner)
		})
	}
	for _, pid := range roots {
		tree, _ := process.Tree(pid)
		all = append(all, tree...)
	}
	ours, _ := process.Tree(os.Getpid())
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), func(pid int) bool { return slices.Contains(ours, pid) })
}

// Holds reports whether a process has a socket of the record's.
func Holds(pid int, r *state.Record) bool {
	held, _ := sockdiag.Inodes(pid)
	return slices.ContainsFunc(r.Listeners, func(l state.Listener) bool {
		return slices.ContainsFunc(l.Inodes, func(ino uint64) bool { return slices.Contains(held, ino) })
	})
}
