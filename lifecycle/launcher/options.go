package launcher

import (
	"errors"
	"fmt"
	"log/slog"
	"syscall"
	"time"
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
	// Settings are the first generation's.
	Settings
	// Adopt is the pid of a running server that is taken over; 0 is none. Of its UDP ports those are, that have the
	// number of a TCP port of its or are in Listen.
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
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return nil
}

// ErrOldLauncher is a launcher that must not exit and would not heed the flags that it is given.
var ErrOldLauncher = errors.New("the running launcher is of an older version that takes a command, but no flags")

// ErrUnseen is a program whose binds the launcher may not look at.
var ErrUnseen = errors.New("the program became another user by itself, and the launcher has no ptrace access to it")

// ErrNotShared is a program without SO_REUSEPORT that could not be given it.
var ErrNotShared = errors.New("the program must set SO_REUSEPORT itself (nginx: listen ... reuseport; gunicorn: --reuse-port; " +
	"Node: listen({port, reusePort: true}); Python: allow_reuse_port = True; Go: net.ListenConfig.Control)")

// ErrNotLent is a program whose UDP socket the launcher can't reach when it is bound.
var ErrNotLent = errors.New("a UDP socket is out of reach: it takes pidfd_getfd or ptrace (docker run --cap-add SYS_PTRACE, " +
	"a seccomp profile that has one of them, no other tracer, kernel.yama.ptrace_scope below 2)")

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
