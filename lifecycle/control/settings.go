package control

import (
	"syscall"
	"time"
)

// Settings are the flags of a launcher by which a generation is started, checked, kept and ended.
// In a request the zero value of a field leaves that one as it is; else a duration of 0 is the
// default, and a negative one is none.
type Settings struct {
	// EnvFile is read anew for each generation; its variables are added to the environment.
	EnvFile string `json:"env_file,omitempty"`
	// Listen are the addresses that make a generation ready, "host:port" or "udp:host:port".
	// Empty: all that its predecessor listens on, else the first.
	Listen []string `json:"listen,omitempty"`
	// Health are the probes that must all pass before a generation gets clients, as package health
	// reads them. Empty: each address is connected to.
	Health []string `json:"health,omitempty"`
	// HealthCA names the certificates that https probes trust; HealthInsecure has them accept any.
	HealthCA       string `json:"health_ca,omitempty"`
	HealthInsecure bool   `json:"health_insecure,omitempty"`
	// StartTimeout bounds a start: the wait for the lock, and from there until the probes pass.
	StartTimeout time.Duration `json:"start_timeout_ns,omitempty"`
	// StopDelay is what established connections get to end before the stop signal.
	StopDelay time.Duration `json:"stop_delay_ns,omitempty"`
	// StopSignal ends the program.
	StopSignal syscall.Signal `json:"stop_signal,omitempty"`
	// DrainTimeout runs from the switch or the stop to the SIGKILL.
	DrainTimeout time.Duration `json:"drain_timeout_ns,omitempty"`
	// Restart is for programs that end by themselves: no, on-failure or always.
	Restart string `json:"restart,omitempty"`
	// Hold is how long clients of a program that crashed are kept waiting.
	Hold time.Duration `json:"hold_ns,omitempty"`
	// Reuse is auto, or off: the program sets SO_REUSEPORT itself.
	Reuse string `json:"reuse,omitempty"`
	// PassSignals are passed on to the program beside USR1, USR2, WINCH and the like.
	PassSignals []syscall.Signal `json:"pass_signals,omitempty"`
}

// With returns the settings with others laid over them. What says how https is trusted stays
// together, and with the probes.
func (s Settings) With(over Settings) Settings {
	if len(over.Health) > 0 || over.HealthCA != "" || over.HealthInsecure {
		if len(over.Health) > 0 {
			s.Health = over.Health
		}
		s.HealthCA, s.HealthInsecure = over.HealthCA, over.HealthInsecure
	}
	lay(&s.EnvFile, over.EnvFile)
	lay(&s.StartTimeout, over.StartTimeout)
	lay(&s.StopDelay, over.StopDelay)
	lay(&s.StopSignal, over.StopSignal)
	lay(&s.DrainTimeout, over.DrainTimeout)
	lay(&s.Restart, over.Restart)
	lay(&s.Hold, over.Hold)
	lay(&s.Reuse, over.Reuse)
	if len(over.Listen) > 0 {
		s.Listen = over.Listen
	}
	if len(over.PassSignals) > 0 {
		s.PassSignals = over.PassSignals
	}
	return s
}

func lay[T comparable](to *T, over T) {
	var zero T
	if over != zero {
		*to = over
	}
}
