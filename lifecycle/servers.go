package lifecycle

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"overlap/lifecycle/httpdrain"
)

// server is something that serves on a socket of the generation.
type server struct {
	name   string
	serve  func() error
	finish func(context.Context) error
	http   *httpdrain.Drainer
}

// servers are all of a generation's.
type servers struct {
	log     *slog.Logger
	mu      sync.Mutex
	all     []*server
	running sync.WaitGroup
	begun   bool
	closed  bool
	failed  chan error
}

func (s *servers) add(one *server) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, one)
	if s.begun {
		s.startLocked(one)
	}
}

func (s *servers) http(srv *http.Server, secure bool, cert, key string, lns []net.Listener) {
	d := httpdrain.New(srv, httpdrain.Options{Logger: s.log})
	for i, ln := range lns {
		one := &server{name: ln.Addr().String(), serve: func() error { return d.Serve(ln) }}
		if secure {
			one.serve = func() error { return d.ServeTLS(ln, cert, key) }
		}
		if i == 0 {
			one.http = d
		}
		s.add(one)
	}
}

// start lets all servers serve.
func (s *servers) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun = true
	for _, one := range s.all {
		s.startLocked(one)
	}
}

func (s *servers) startLocked(one *server) {
	s.running.Go(func() {
		err := one.serve()
		s.mu.Lock()
		closed := s.closed
		s.mu.Unlock()
		if closed {
			return
		}
		if err == nil {
			err = fmt.Errorf("the server returned")
		}
		select {
		case s.failed <- fmt.Errorf("serve %s: %w", one.name, err):
		default:
		}
	})
}

// closing says that the listeners are about to be closed: what the servers return from now on
// is no failure.
func (s *servers) closing() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

func (s *servers) each(f func(*server)) {
	s.mu.Lock()
	all := s.all
	s.mu.Unlock()
	for _, one := range all {
		f(one)
	}
}

// finish drains every server; the listeners are closed.
func (s *servers) finish(ctx context.Context, grace time.Duration) Report {
	closed := make(chan struct{})
	close(closed)
	var r Report
	var mu sync.Mutex
	var all sync.WaitGroup
	s.each(func(one *server) {
		if one.http != nil {
			all.Go(func() {
				h, err := one.http.Drain(ctx, closed, grace)
				if err != nil {
					s.log.Warn("drain", "server", one.name, "error", err)
				}
				mu.Lock()
				defer mu.Unlock()
				r.Finished += h.Finished
				r.Cut += h.Cut
				r.Hijacked += h.Hijacked
			})
		}
		if one.finish != nil {
			all.Go(func() {
				if err := one.finish(ctx); err != nil {
					s.log.Warn("drain", "server", one.name, "error", err)
					mu.Lock()
					defer mu.Unlock()
					r.Cut++
				}
			})
		}
	})
	all.Wait()
	// A serve function that ignores its closed listener must not keep the process.
	over := make(chan struct{})
	go func() { s.running.Wait(); close(over) }()
	select {
	case <-over:
	case <-ctx.Done():
	}
	return r
}

func (s *servers) connections() int {
	n := 0
	s.each(func(one *server) {
		if one.http != nil {
			n += one.http.Counts().Open()
		}
	})
	return n
}
