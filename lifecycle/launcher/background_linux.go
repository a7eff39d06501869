package launcher

import (
	"slices"
	"strconv"
	"syscall"
	"time"

	"overlap/lifecycle/process"
	"overlap/reuse/intercept"
	"overlap/reuse/sockdiag"
)

// kinship is what a process without a parent of its own is to a generation.
type kinship int

const (
	stranger kinship = iota - 1 // another generation's
	unknown
	relative // the environment says so, which programs may overwrite with their title
	holder   // it has a socket of the generation's
)

// kin finds out what a process is to the generation.
func (g *generation) kin(pid int) kinship {
	held, _ := sockdiag.Inodes(pid)
	for _, m := range g.owner.Members() {
		for _, ino := range m.Inodes() {
			if slices.Contains(held, ino) {
				return holder
			}
		}
	}
	if g.sockets.waitFor(held) {
		return holder
	}
	env := process.Environment(pid)
	number := variable(env, generationVariable)
	switch {
	case number == "" || variable(env, nameVariable) != g.l.opt.Name:
		return unknown
	case number == strconv.Itoa(g.owner.Number()):
		return relative
	}
	return stranger
}

// backgroundTries, and the pause between two, are for a process that has just lost its parent.
const (
	backgroundTries = 20
	backgroundPause = 5 * time.Millisecond
)

// daemon looks for the process that a program left behind when its first one ended well. end
// is nil where there is none.
func (r *reaper) daemon(tap *intercept.Tap, kin func(pid int) kinship) (process.Identity, <-chan syscall.WaitStatus) {
	for range backgroundTries {
		select {
		case <-tap.Done():
			return process.Identity{}, nil
		default:
		}
		if id, end := r.orphan(kin); end != nil {
			return id, end
		}
		time.Sleep(backgroundPause)
	}
	return process.Identity{}, nil
}

// orphan is the nearest relative among the children that nobody knows, and of those the oldest.
func (r *reaper) orphan(kin func(pid int) kinship) (process.Identity, <-chan syscall.WaitStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var best process.Identity
	nearest := stranger
	for _, pid := range r.orphansLocked() {
		id, err := process.Of(pid)
		if err != nil || !id.Alive() {
			continue
		}
		k := kin(pid)
		if k > nearest || k == nearest && k > stranger && id.Start < best.Start {
			best, nearest = id, k
		}
	}
	if nearest == stranger {
		return process.Identity{}, nil
	}
	end := make(chan syscall.WaitStatus, 1)
	r.watched[best.PID] = end
	return best, end
}

// orphansLocked are the children that nobody waits for.
func (r *reaper) orphansLocked() []int {
	return slices.DeleteFunc(r.children(), func(pid int) bool { return r.known[pid] || r.watched[pid] != nil })
}

// orphans are those of the children that nobody waits for that are as near to a generation, with
// their descendants.
func (r *reaper) orphans(kin func(pid int) kinship, least kinship) (all []int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, pid := range r.orphansLocked() {
		if kin(pid) < least {
			continue
		}
		if tree, err := process.Tree(pid); err == nil {
			all = append(all, tree...)
		}
	}
	return all
}
