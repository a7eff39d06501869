package lifecycle

import (
	"os"
	"os/signal"
	"syscall"

	"overlap/lifecycle/internal/repeat"
)

// signals are what the process is told by them.
type signals struct {
	stops   chan os.Signal
	reloads chan os.Signal
	raw     chan os.Signal
	done    chan struct{}
}

// signals begins to listen. SIGHUP stays ignored where it was ignored at start (nohup).
func (g *Generation) signals() *signals {
	s := &signals{stops: make(chan os.Signal, 4), reloads: make(chan os.Signal, 4),
		raw: make(chan os.Signal, 8), done: make(chan struct{})}
	if g.opt.NoSignals {
		close(s.done)
		return s
	}
	want := []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR2}
	if !signal.Ignored(syscall.SIGHUP) {
		want = append(want, syscall.SIGHUP)
	}
	signal.Notify(s.raw, want...)
	go s.sort()
	return s
}

func (s *signals) sort() {
	defer close(s.done)
	var again repeat.Filter
	for sig := range s.raw {
		to := s.stops
		if sig == syscall.SIGHUP || sig == syscall.SIGUSR2 {
			to = s.reloads
		} else if again.Same() {
			continue
		}
		select {
		case to <- sig:
		default:
		}
	}
}

func (s *signals) stop() {
	signal.Stop(s.raw)
	select {
	case <-s.done:
	default:
		close(s.raw)
		<-s.done
	}
}
