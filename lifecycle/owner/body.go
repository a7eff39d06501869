package owner

import (
	"context"
	"time"

	"overlap/lifecycle/control"
)

// Body is what a generation runs. Its methods are called from one goroutine at a time, but
// for Connections and Look.
type Body interface {
	// Announce says that new connections go elsewhere from now on.
	Announce()
	// Resume takes Announce back: the newcomer died, and the connections come here again.
	Resume()
	// Linger waits for what should be over before the sockets are let go; nothing new comes
	// any more. It returns when ctx ends.
	Linger(ctx context.Context)
	// Finish ends everything, cleanly until ctx ends and by force then. The sockets of this
	// process are closed already.
	Finish(ctx context.Context) Report
	// Connections is how many connections the generation has.
	Connections() int
	// Look finds out which sockets are not there any more, before somebody is told.
	Look()
	// Spawn starts the next generation. Its owner must present the token in its session.
	Spawn(req control.ReloadRequest, token string) (Spawned, error)
}

// Spawned is a next generation that was started and is not known yet.
type Spawned interface {
	// Done is closed when it ended.
	Done() <-chan struct{}
	// Err is why, once Done is closed.
	Err() error
	// Kill ends it.
	Kill()
}

// Report tells how a generation ended.
type Report struct {
	// Finished and Cut are connections that ended by themselves, and by force.
	Finished, Cut int
	// Hijacked is how many of them were taken over from HTTP, such as WebSockets.
	Hijacked int
	// Backlog is how long it took until nothing was left at the sockets, Connections how long
	// the established connections took after that, Total everything from the switch or stop.
	Backlog, Connections, Total time.Duration
	// Handover is true where a newer generation has taken over.
	Handover bool
}
