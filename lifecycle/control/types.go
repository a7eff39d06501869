package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"overlap/lifecycle/state"
)

// Bounds, in bytes.
const (
	maxMessage = 1 << 20 // a session's message, an event, a status
	maxRequest = 8 << 20 // a request's body: an environment can be long
)

var (
	// ErrTooLarge says that a message is longer than 1 MiB.
	ErrTooLarge = errors.New("message is longer than 1 MiB")
	// ErrNoOutcome says that the connection ended before the work did: the owner died,
	// or was closed. What became of the work is not known.
	ErrNoOutcome = errors.New("the owner went away before it told the outcome")
)

// queryConnections of a GET of the status is "false" where nobody wants to know how many there are.
const queryConnections = "connections"

// Backend does what is asked for. Its methods are called concurrently.
//
// Reload and Stop tell how it goes through events, which never blocks and may be called
// from any goroutine, and send one with Final set before they return; what comes after
// that one is dropped. Their context ends when the server is closed by force, not when
// who asked goes away. Session has a session that is not started; it ends, and is
// closed, when Session returns.
type Backend interface {
	// Status counts connections only where they are asked for.
	Status(ctx context.Context, connections bool) (Status, error)
	Reload(ctx context.Context, request ReloadRequest, events func(Event))
	Stop(ctx context.Context, request StopRequest, events func(Event))
	Session(ctx context.Context, s *Session)
}

// Status is what is known of a service.
type Status struct {
	Service     string       `json:"service"`
	Generations []Generation `json:"generations"` // newest first
	// Takes are the names of what a request may hold beside what the first version knew. Who sends
	// more to an owner that does not name it can't tell whether it was heeded.
	Takes []string `json:"takes,omitempty"`
}

// TakesSettings is in Status.Takes of an owner that heeds ReloadRequest.Settings.
const TakesSettings = "settings"

// Generation is one generation in a Status.
type Generation struct {
	Generation int         `json:"generation"`
	PID        int         `json:"pid"` // the server's, or the launched program's
	State      state.State `json:"state"`
	// Listeners are addresses: host:port for TCP, with the network in front for others
	// (udp:127.0.0.1:53, unix:/path).
	Listeners   []string  `json:"listeners"`
	Connections int       `json:"connections"` // open client connections
	Started     time.Time `json:"started,omitzero"`
	Switched    time.Time `json:"switched,omitzero"` // zero until it served
	Owner       int       `json:"owner,omitempty"`   // the launcher's pid, where there is one
	Command     []string  `json:"command,omitempty"`
	// Holding is true where the program has ended and clients wait for the next one: the generation
	// is about to be started again, and can be reloaded.
	Holding bool `json:"holding,omitempty"`
	// Sockets are the inodes of the generation's sockets, placeholders too.
	Sockets []uint64 `json:"sockets,omitempty"`
}

// What a reload waits for.
const (
	WaitSwitched = "switched" // the new generation serves: the default
	WaitDrained  = "drained"  // and the old one has ended
)

// ReloadRequest asks for the next generation. The zero value is the same command again
// with the owner's own settings.
type ReloadRequest struct {
	// Timeout stands in for the start time-out of this handover; 0 is the owner's own.
	Timeout time.Duration `json:"timeout_ns,omitempty"`
	// Wait is what the outcome waits for; empty is WaitSwitched.
	Wait string `json:"wait,omitempty"`
	// Command, Env and Directory replace the owner's own where they are not empty.
	Command   []string `json:"command,omitempty"`
	Env       []string `json:"env,omitempty"`
	Directory string   `json:"directory,omitempty"`
	// Settings are laid over the launcher's for this generation and those after it. Only an owner
	// that says so takes them: see TakesSettings.
	Settings *Settings `json:"settings,omitempty"`
}

func (r *ReloadRequest) check() error {
	switch {
	case r.Wait != "" && r.Wait != WaitSwitched && r.Wait != WaitDrained:
		return fmt.Errorf("wait %q is not known: %s or %s", r.Wait, WaitSwitched, WaitDrained)
	case r.Timeout < 0:
		return fmt.Errorf("timeout %v is negative", r.Timeout)
	}
	return nil
}

// StopRequest asks for a drain and the end.
type StopRequest struct {
	// Timeout stands in for the drain time-out; 0 is the owner's own.
	Timeout time.Duration `json:"timeout_ns,omitempty"`
}

func (r *StopRequest) check() error {
	if r.Timeout < 0 {
		return fmt.Errorf("timeout %v is negative", r.Timeout)
	}
	return nil
}

// Kinds of events.
const (
	KindStarting = "starting" // the next generation is being started
	KindHealthy  = "healthy"  // its health check has passed
	KindSwitched = "switched" // it gets the new connections
	KindDrained  = "drained"  // the old one has ended
	KindFailed   = "failed"
	KindMessage  = "message" // words for people
)

// Event is one step of a piece of work.
type Event struct {
	Time       time.Time `json:"time"` // set where it is zero
	Kind       string    `json:"kind"`
	Generation int       `json:"generation,omitempty"` // whom it is about
	Text       string    `json:"text,omitempty"`
	Final      bool      `json:"final,omitempty"`
	// Outcome is set in the final event alone.
	Outcome *Outcome `json:"outcome,omitempty"`
}

// Values of Outcome.Outcome.
const (
	OutcomeSwitched = "switched"
	OutcomeStopped  = "stopped"
	OutcomeFailed   = "failed"
)

// Outcome is how a reload or a stop ended.
type Outcome struct {
	Service string `json:"service"`
	From    int    `json:"from"` // the old generation
	To      int    `json:"to"`   // the new one; 0 for a stop, or where there is none
	Outcome string `json:"outcome"`
	Reason  string `json:"reason"` // why it failed, else empty
	// SwitchMS and TotalMS are milliseconds from the request to the switch, and to the
	// outcome.
	SwitchMS float64 `json:"switch_ms"`
	TotalMS  float64 `json:"total_ms"`
}
