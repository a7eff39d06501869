package launcher

import (
	"os"
	"os/signal"
	"slices"
	"syscall"

	"overlap/lifecycle/internal/repeat"
)

// passed are the signals that are the program's business.
var passed = []os.Signal{syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGQUIT, syscall.SIGALRM, syscall.SIGIO}

// signals are what the launcher is told by them.
type signals struct {
	stops   chan os.Signal
	reloads chan os.Signal
	pass    chan syscall.Signal
	raw     chan os.Signal
	done    chan struct{}
}

func (l *launcher) signals() *signals {
	s := &signals{stops: make(chan os.Signal, 4), reloads: make(chan os.Signal, 4),
		pass: make(chan syscall.Signal, 16), raw: make(chan os.Signal, 16), done: make(chan struct{})}
	want := append(slices.Clone(passed), syscall.SIGTERM, syscall.SIGINT)
	for _, sig := range l.opt.PassSignals {
		want = append(want, sig)
	}
	if !signal.Ignored(syscall.SIGHUP) {
		want = append(want, syscall.SIGHUP)
	}
	signal.Notify(s.raw, want...)
	go s.sort(l.opt.PassSignals)
	return s
}

func (s *signals) sort(pass []syscall.Signal) {
	defer close(s.done)
	var again repeat.Filter
	for sig := range s.raw {
		number := sig.(syscall.Signal)
		switch {
		case slices.Contains(pass, number), slices.Contains(passed, sig):
			select {
			case s.pass <- number:
			default:
			}
		case number == syscall.SIGHUP:
			select {
			case s.reloads <- sig:
			default:
			}
		default:
			if again.Same() {
				continue
			}
			select {
			case s.stops <- sig:
			default:
			}
		}
	}
}

func (s *signals) stop() {
	signal.Stop(s.raw)
	close(s.raw)
	<-s.done
}
