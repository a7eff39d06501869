package process

import (
	"context"
	"slices"
	"syscall"
	"time"
)

// What a main process leaves behind has other parents, and its number, which is that of its process group, may
// be somebody else's once it was waited for. So nothing is signalled by a number that was not looked at again.

// KillTime is how long what was killed may take to end.
const KillTime = 5 * time.Second

// KillAll kills the processes that are known, and those that list names, as user uid could, until none is left that can be
// killed. A master may have started one meanwhile.
func KillAll(uid int, known []Identity, list func() []int) {
	ctx, cancel := context.WithTimeout(context.Background(), KillTime)
	defer cancel()
	for ctx.Err() == nil {
		var dying []*Handle
		for _, id := range append(slices.Clone(known), Identities(list)...) {
			h, err := Open(id)
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

// Identities are those of the processes that list names. They are looked up between two lists: none of them has got
// the number of one that ended.
func Identities(list func() []int) []Identity {
	var all []Identity
	for _, pid := range list() {
		if id, err := Of(pid); err == nil {
			all = append(all, id)
		}
	}
	again := list()
	return slices.DeleteFunc(all, func(id Identity) bool { return !slices.Contains(again, id.PID) || !id.Alive() })
}
