package lifecycle

import (
	"log/slog"
	"os"
	"time"

	"overlap/health"
	"overlap/lifecycle/owner"
	"overlap/lifecycle/state"
)

// What the zero values of [Options] stand for.
const (
	DefaultStartTimeout  = 60 * time.Second
	DefaultDrainTimeout  = 25 * time.Second // inside the 30 s that Kubernetes gives
	DefaultIdleGrace     = 5 * time.Second
	DefaultShutdownDelay = 0 * time.Second
)

// Options of a generation. The zero value is useful. A duration of 0 is the default, a negative one
// is none.
type Options struct {
	// Name is the service's, [a-z0-9][a-z0-9._-]{0,47}. Empty: the base name of the command.
	Name string
	// StateDir is where services are found. Empty: $OVERLAP_STATE_DIR, else the usual places.
	StateDir string
	// Probes must all pass before the generation gets clients. Nil: each address is connected to.
	Probes []health.Spec
	// StartTimeout bounds the wait for another handover, and that for the probes to pass.
	StartTimeout time.Duration
	// DrainTimeout runs from the switch or the stop; what is left then is cut. None: any time.
	DrainTimeout time.Duration
	// IdleGrace is what idle keep-alive connections get to send one more request.
	IdleGrace time.Duration
	// ShutdownDelay is how long a plain stop goes on accepting while Readiness says 503.
	ShutdownDelay time.Duration
	// NoSignals leaves SIGTERM, SIGINT, SIGHUP and SIGUSR2 to the program.
	NoSignals bool
	// Logger gets an event a step. Nil: slog.Default.
	Logger *slog.Logger
	// BeforeReady runs when the servers serve and before the probes; an error fails the start.
	BeforeReady func() error
	// OnDrain runs when the drain begins that nothing can take back.
	OnDrain func()
	// AfterDrain gets the report, before Run returns.
	AfterDrain func(Report)
}

// Report tells how a generation ended.
type Report = owner.Report

// resolved are options with everything decided.
type resolved struct {
	Options
	root      string
	isDefault bool // the name
}

func (o Options) resolve() (resolved, error) {
	r := resolved{Options: o}
	set := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
		*d = max(*d, 0)
	}
	set(&r.StartTimeout, DefaultStartTimeout)
	if r.StartTimeout == 0 {
		r.StartTimeout = forever
	}
	set(&r.DrainTimeout, DefaultDrainTimeout)
	if r.DrainTimeout == 0 {
		r.DrainTimeout = forever
	}
	set(&r.IdleGrace, DefaultIdleGrace)
	set(&r.ShutdownDelay, DefaultShutdownDelay)
	if r.Logger == nil {
		r.Logger = slog.Default()
	}
	if r.Name == "" {
		r.Name, r.isDefault = state.DefaultName(os.Args[0]), true
	}
	if r.Probes == nil {
		tcp, err := health.Parse(health.KindTCP, health.Options{})
		if err != nil {
			return r, err
		}
		r.Probes = []health.Spec{tcp}
	}
	if err := state.ValidName(r.Name); err != nil {
		return r, err
	}
	if r.StateDir == "" {
		r.StateDir = os.Getenv("OVERLAP_STATE_DIR")
	}
	var err error
	r.root, err = state.Root(r.StateDir, os.Getenv)
	return r, err
}

// forever stands for no time-out.
const forever = 100 * 365 * 24 * time.Hour
