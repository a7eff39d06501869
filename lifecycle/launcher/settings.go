package launcher

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"overlap/health"
	"overlap/lifecycle/control"
	"overlap/reuse"
)

// Settings are what a generation lives by. They travel with a request to a launcher that must not
// exit, and hold for that generation and those after it.
type Settings = control.Settings

// The values of Settings.Reuse.
const (
	ReuseAuto = "auto"
	ReuseOff  = "off"
)

// settings are a generation's, with the defaults filled in and the texts understood.
type settings struct {
	Settings
	given    Settings // without the defaults: what the next one's are laid over
	declared []reuse.Address
	probes   []health.Spec
	restart  Restart
}

// newSettings refuses what the command line refuses: settings come with requests too.
func newSettings(given Settings) (*settings, error) {
	s := &settings{Settings: given, given: given}
	set := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
		*d = max(*d, 0)
	}
	set(&s.StartTimeout, DefaultStartTimeout)
	set(&s.DrainTimeout, DefaultDrainTimeout)
	set(&s.StopDelay, DefaultStopDelay)
	set(&s.Hold, DefaultHold)
	if s.StartTimeout == 0 {
		s.StartTimeout = forever
	}
	if s.DrainTimeout == 0 {
		s.DrainTimeout = forever
	}
	if s.StopSignal == 0 {
		s.StopSignal = DefaultStopSignal
	}
	s.restart = DefaultRestart
	if err := known(s.StopSignal); err != nil {
		return nil, fmt.Errorf("stop signal: %w", err)
	}
	for _, sig := range s.PassSignals {
		if err := Passable(sig); err != nil {
			return nil, fmt.Errorf("pass signal %v: %w", sig, err)
		}
	}
	var err error
	if given.Restart != "" {
		if s.restart, err = ParseRestart(given.Restart); err != nil {
			return nil, err
		}
	}
	if given.Reuse != "" && given.Reuse != ReuseAuto && given.Reuse != ReuseOff {
		return nil, fmt.Errorf("reuse %q: must be auto or off", given.Reuse)
	}
	if s.declared, err = parseListen(given.Listen); err != nil {
		return nil, err
	}
	if len(s.Health) == 0 {
		s.Health = []string{health.KindTCP}
	}
	for _, text := range s.Health {
		probe, err := health.Parse(text, health.Options{CAFile: s.HealthCA, Insecure: s.HealthInsecure})
		if err != nil {
			return nil, err
		}
		if probe.Kind() == health.KindNone && len(s.Health) > 1 {
			return nil, errors.New("health none and other probes exclude each other")
		}
		if err := probe.Missing(); err != nil {
			return nil, fmt.Errorf("health %q: %w", text, err)
		}
		s.probes = append(s.probes, probe)
	}
	return s, nil
}

// with are the settings of a request laid over these.
func (s *settings) with(over *Settings) (*settings, error) {
	if over == nil {
		return s, nil
	}
	return newSettings(s.given.With(*over))
}

func parseListen(listen []string) ([]reuse.Address, error) {
	var all []reuse.Address
	for _, addr := range listen {
		network := "tcp"
		if rest, ok := strings.CutPrefix(addr, "udp:"); ok && rest != "" {
			network, addr = "udp", rest
		} else if rest, ok := strings.CutPrefix(addr, "tcp:"); ok && rest != "" {
			addr = rest
		}
		a, err := reuse.ParseAddress(context.Background(), network, addr)
		if err != nil {
			return nil, err
		}
		if a.AddrPort.Port() == 0 {
			return nil, fmt.Errorf("address %q: must have the port that the program listens on", addr)
		}
		all = append(all, a)
	}
	return all, nil
}

// Passable returns an error for a signal that a launcher can't pass on to its program.
func Passable(sig syscall.Signal) error {
	if why := notPassed[sig]; why != "" {
		return errors.New(why)
	}
	return known(sig)
}

func known(sig syscall.Signal) error {
	if unix.SignalName(sig) == "" {
		return fmt.Errorf("there is no signal %d", int(sig))
	}
	return nil
}

// notPassed are the signals that a launcher can't pass on, and why.
var notPassed = func() map[syscall.Signal]string {
	const faults = "this signal is a fault of the process that gets it"
	return map[syscall.Signal]string{
		syscall.SIGKILL: "no process can receive this signal",
		syscall.SIGSTOP: "no process can receive this signal",
		syscall.SIGTERM: "this signal stops the service; the program gets the one of --stop-signal",
		syscall.SIGINT:  "this signal stops the service; the program gets the one of --stop-signal",
		syscall.SIGCHLD: "this signal tells overlap itself that a process has ended",
		syscall.SIGPIPE: "this signal tells overlap itself that nobody reads what it writes",
		syscall.SIGURG:  "this signal is of use to overlap's own runtime",
		syscall.SIGPROF: "this signal is of use to overlap's own runtime",
		syscall.SIGSEGV: faults, syscall.SIGBUS: faults, syscall.SIGFPE: faults,
		syscall.SIGILL: faults, syscall.SIGTRAP: faults, syscall.SIGSYS: faults,
	}
}()
