package launcher

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"overlap/lifecycle/control"
)

// What is not given is as the README says, and a negative time is none.
func TestDefaultSettings(t *testing.T) {
	type times struct{ start, stop, drain, hold time.Duration }
	for given, want := range map[time.Duration]times{
		0:           {60 * time.Second, 5 * time.Second, 25 * time.Second, 10 * time.Second},
		-1:          {forever, 0, forever, 0},
		time.Minute: {time.Minute, time.Minute, time.Minute, time.Minute},
	} {
		s, err := newSettings(Settings{StartTimeout: given, StopDelay: given, DrainTimeout: given, Hold: given})
		if err != nil {
			t.Fatal(err)
		}
		if got := (times{s.StartTimeout, s.StopDelay, s.DrainTimeout, s.Hold}); got != want {
			t.Errorf("%v: %v, want %v", given, got, want)
		}
		if s.StopSignal != syscall.SIGTERM || s.restart != RestartOnFailure || !slices.Equal(s.Health, []string{"tcp"}) {
			t.Errorf("%+v", s)
		}
	}
}

// What comes with a request is held to what the command line is.
func TestSettingsOfARequest(t *testing.T) {
	running, err := newSettings(Settings{Health: []string{"tcp"}})
	if err != nil {
		t.Fatal(err)
	}
	for want, over := range map[string]Settings{
		"stop signal: there is no signal 77777":                                   {StopSignal: 77777},
		"stop signal: there is no signal -1":                                      {StopSignal: -1},
		"pass signal terminated: this signal stops the service":                   {PassSignals: []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM}},
		"pass signal killed: no process can receive this signal":                  {PassSignals: []syscall.Signal{syscall.SIGKILL}},
		"pass signal signal 0: there is no signal 0":                              {PassSignals: []syscall.Signal{0}},
		"restart \"often\": must be":                                              {Restart: "often"},
		"reuse \"on\": must be":                                                   {Reuse: "on"},
		"health none and other probes exclude each other":                         {Health: []string{"none", "tcp"}},
		"health \"exec:no-such-command\": find command":                           {Health: []string{"exec:no-such-command"}},
		"address \"127.0.0.1:0\": must have the port that the program listens on": {Listen: []string{"127.0.0.1:0"}},
		"address \":0\": must have the port that the program listens on":          {Listen: []string{"udp::0"}},
	} {
		if _, err := running.with(&over); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	over := control.Settings{StopSignal: syscall.SIGKILL, PassSignals: []syscall.Signal{syscall.SIGHUP}, StopDelay: -1,
		Listen: []string{"udp:127.0.0.1:53"}, Health: []string{"none"}}
	if s, err := running.with(&over); err != nil || s.StopSignal != syscall.SIGKILL || s.StopDelay != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}
