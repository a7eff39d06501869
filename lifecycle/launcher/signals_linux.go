package launcher

import (
	"os"
	"os/signal"
	"slices"
	"sync"
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
	own     []os.Signal // what the launcher hears by itself

	mu    sync.Mutex
	extra []syscall.Signal // --pass-signal of the generation that serves
}

// passOn takes the signals that a generation wants beside the others.
func (s *signals) passOn(extra []syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sig := range s.extra {
		if !slices.Contains(extra, sig) && !slices.Contains(s.own, os.Signal(sig)) {
			signal.Reset(sig)
		}
	}
	s.extra = extra
	for _, sig := range extra {
		signal.Notify(s.raw, sig)
	}
}

func (s *signals) passes(sig syscall.Signal) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.extra, sig) || slices.Contains(passed, os.Signal(sig))
}

func (l *launcher) signals() *signals {
	s := &signals{stops: make(chan os.Signal, 4), reloads: make(chan os.Signal, 4),
		pass: make(chan syscall.Signal, 16), raw: make(chan os.Signal, 16), done: make(chan struct{})}
	s.own = append(slices.Clone(passed), syscall.SIGTERM, syscall.SIGINT)
	if !signal.Ignored(syscall.SIGHUP) {
		s.own = append(s.own, syscall.SIGHUP)
	}
	signal.Notify(s.raw, s.own...)
	// Whoever read the log has gone: no reason to end (os/signal, "SIGPIPE"). The program gets the default.
	signal.Notify(s.raw, syscall.SIGPIPE)
	s.passOn(l.set.PassSignals)
	go s.sort()
	return s
}

func (s *signals) sort() {
	defer close(s.done)
	var again repeat.Filter
	for sig := range s.raw {
		number := sig.(syscall.Signal)
		switch {
		case s.passes(number):
			select {
			case s.pass <- number:
			default:
			}
		case number == syscall.SIGHUP:
			select {
			case s.reloads <- sig:
			default:
			}
		case number == syscall.SIGTERM, number == syscall.SIGINT:
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
