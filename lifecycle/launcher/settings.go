package launcher

import (
	"context"
	"fmt"
	"strings"
	"time"

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
		all = append(all, a)
	}
	return all, nil
}
