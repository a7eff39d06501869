package launcher

import (
	"context"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"overlap/lifecycle/process"
)

// What a main process leaves behind has other parents, and its number, which is that of its process group, may
// be somebody else's once it was waited for. So nothing is signalled by a number that was not looked at again.

// killTime is how long what was killed may take to end.
const killTime = 5 * time.Second

// killAll kills the processes that are known, and those that list names, as user uid could, until none is left that can be
// killed. A master may have started one meanwhile.
func killAll(uid int, known []process.Identity, list func() []int) {
	ctx, cancel := context.WithTimeout(context.Background(), killTime)
	defer cancel()
	for ctx.Err() == nil {
		var dying []*process.Handle
		for _, id := range append(slices.Clone(known), identities(list)...) {
			h, err := process.Open(id)
			if err != nil {
				continue // it has ended
			}
			defer h.Close()
			if h.SignalAs(uid, syscall.SIGKILL) == nil {
				dying = append(dying, h)
			}
		}
		if len(dying) == 0 {
			return
		}
		for _, h := range dying {
			h.Wait(ctx)
		}
	}
}

// identities are those of the processes that list names. They are looked up between two lists: none of them has got
// the number of one that ended.
func identities(list func() []int) []process.Identity {
	var all []process.Identity
	for _, pid := range list() {
		if id, err := process.Of(pid); err == nil {
			all = append(all, id)
		}
	}
	again := list()
	return slices.DeleteFunc(all, func(id process.Identity) bool { return !slices.Contains(again, id.PID) || !id.Alive() })
}

// inGroup are those of the processes that are in a process group.
func inGroup(pids []int, group int) []int {
	return slices.DeleteFunc(slices.Clone(pids), func(pid int) bool {
		of, err := unix.Getpgid(pid)
		return err != nil || of != group
	})
}
