package launcher

import (
	"errors"
	"fmt"
	"log/slog"
	"syscall"
	"time"

	"overlap/health"
)

// What the zero values of [Options] stand for.
const (
	DefaultStartTimeout = 60 * time.Second
	DefaultDrainTimeout = 25 * time.Second
	DefaultStopDelay    = 5 * time.Second
	DefaultHold         = 10 * time.Second
	DefaultStopSignal   = syscall.SIGTERM
	DefaultRestart      = RestartOnFailure
)

// Exit codes of a launcher's own, as docker run and env(1) have them; a program's signal n is
// 128+n.
const (
	ExitOwnFailure    = 125
	ExitNotExecutable = 126
	ExitNotFound      = 127
	exitSignalBase    = 128
)

// Restart says when a program that ended by itself is started again.
type Restart string

// The values of Restart.
const (
	RestartNo        Restart = "no"
	RestartOnFailure Restart = "on-failure"
	RestartAlways    Restart = "always"
)

// ParseRestart reads a Restart.
func ParseRestart(s string) (Restart, error) {
	switch r := Restart(s); r {
	case RestartNo, RestartOnFailure, RestartAlways:
		return r, nil
	}
	return "", fmt.Errorf("restart %q: must be no, on-failure or always", s)
}

// Bounds of restarts.
const (
	maxCrashes     = 5
	crashWindow    = 60 * time.Second
	firstBackoff   = 100 * time.Millisecond
	highestBackoff = 10 * time.Second
)

// Options of a launcher. Command is needed; the zero values of the others are useful. A duration
// of 0 is the default, a negative one is none.
type Options struct {
	// Name is the service's. Empty: the base name of the command.
	Name string
	// StateDir is where services are found; see package state.
	StateDir string
	// Command is the program and its arguments; it is looked up anew for each generation.
	Command []string
	// Dir is the program's directory. Empty: the launcher's, by its name in $PWD.
	Dir string
	// EnvFile is read anew for each generation; its variables are added to the launcher's.
	EnvFile string
	// Listen are the addresses that make a generation ready, "host:port" or "udp:host:port".
	// Empty: all that its predecessor listens on, else the first.
	Listen []string
	// Probes must all pass before a generation gets clients. Nil: each address is connected to.
	Probes []health.Spec
	// StartTimeout bounds a start: the wait for the lock, and from there until the probes pass.
	StartTimeout time.Duration
	// StopDelay is what established connections get to end before the stop signal.
	StopDelay time.Duration
	// StopSignal ends the program.
	StopSignal syscall.Signal
	// DrainTimeout runs from the switch or the stop to the SIGKILL.
	DrainTimeout time.Duration
	// Restart is for programs that end by themselves.
	Restart Restart
	// Hold is how long clients of a program that crashed are kept waiting.
	Hold time.Duration
	// NoReuse leaves SO_REUSEPORT to the program.
	NoReuse bool
	// PassSignals are passed on to the program beside USR1, USR2, WINCH and the like.
	PassSignals []syscall.Signal
	// Adopt is the pid of a running server that is taken over; 0 is none.
	Adopt int
	// Log gets an event a step. Nil: slog.Default.
	Log *slog.Logger
	// Env is the environment to start from. Nil: the process's.
	Env []string
}

func (o *Options) defaults() error {
	if len(o.Command) == 0 {
		return errors.New("no command")
	}
	set := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
		*d = max(*d, 0)
	}
	set(&o.StartTimeout, DefaultStartTimeout)
	set(&o.DrainTimeout, DefaultDrainTimeout)
	set(&o.StopDelay, DefaultStopDelay)
	set(&o.Hold, DefaultHold)
	if o.StartTimeout == 0 {
		o.StartTimeout = forever
	}
	if o.DrainTimeout == 0 {
		o.DrainTimeout = forever
	}
	if o.StopSignal == 0 {
		o.StopSignal = DefaultStopSignal
	}
	if o.Restart == "" {
		o.Restart = DefaultRestart
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Probes == nil {
		tcp, err := health.Parse(health.KindTCP, health.Options{})
		if err != nil {
			return err
		}
		o.Probes = []health.Spec{tcp}
	}
	return nil
}

// forever stands for no time-out.
const forever = 100 * 365 * 24 * time.Hour

// ExitError is how a launcher ends: with a code, and with words where the program's own don't
// say it.
type ExitError struct {
	Code int
	Err  error
}

func (e *ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

func (e *ExitError) Unwrap() error { return e.Err }
