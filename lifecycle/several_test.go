package lifecycle_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"overlap/lifecycle/bench"
)

// TestSeveral: all addresses of a generation are handed over, each with a server and with
// several sockets of its own.
func TestSeveral(t *testing.T) {
	needLinux(t)
	t.Parallel()
	s, _, last := startWith(t, config{Listen: []string{"tcp 127.0.0.1:0", "tcp 127.0.0.1:0", "tcp [::1]:0"},
		Sockets: 3, Separate: true, Probe: "/healthz", Grace: 2 * time.Second})
	if len(last.Listeners) != 3 {
		t.Errorf("%d listeners, want 3", len(last.Listeners))
	}
	for _, l := range last.Listeners {
		if len(l.Inodes) != 3 {
			t.Errorf("%s has %d sockets, want 3", l.Address, len(l.Inodes))
		}
	}
	results := make([]*bench.Result, 3)
	var loads sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	for i := range results {
		loads.Go(func() {
			r, err := bench.Load{Address: s.address(i), Clients: 16, Path: "/echo", Timeout: 60 * time.Second,
				Think: time.Millisecond}.Run(ctx, nil)
			if err != nil {
				t.Error(err)
			}
			results[i] = r
		})
	}
	for range 5 {
		s.mustReload()
		last = s.serving(last.Generation)
	}
	stop()
	loads.Wait()
	for _, r := range results {
		noFailure(t, r)
	}
	s.onlyOne(last)
}

// TestAddressesComeAndGo: a generation may listen on an address more, or on one less, which is
// drained.
func TestAddressesComeAndGo(t *testing.T) {
	needLinux(t)
	t.Parallel()
	s, _, first := startWith(t, config{Listen: []string{"tcp 127.0.0.1:0"}, Probe: "/healthz", Grace: 2 * time.Second})
	more := freeAddress(t, "tcp 127.0.0.1:0")
	refused := func() {
		t.Helper()
		if _, err := s.askAt(s.local(more)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%v, want a refusal", err)
		}
	}
	refused()
	noFailure(t, s.lightLoad(func() {
		s.next(func(c *config) { c.Listen = append(slices.Clone(c.Listen), more) })
		s.mustReload()
		second := s.serving(first.Generation)
		if n, err := s.askAt(s.local(more)); err != nil || n != second.Generation {
			t.Errorf("generation %d answers at the new address, %v", n, err)
		}

		// A request that has begun at an address that goes is finished.
		tr := &http.Transport{}
		defer tr.CloseIdleConnections()
		read, write := io.Pipe()
		ended := make(chan error, 1)
		go func() {
			resp, err := (&http.Client{Transport: tr}).Post("http://"+s.local(more)+"/echo", "text/plain", read)
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			ended <- err
		}()
		io.WriteString(write, "begun")
		s.next(func(*config) {})
		s.mustReload()
		third := s.serving(second.Generation)
		if len(third.Listeners) != 1 {
			t.Errorf("%d listeners, want 1", len(third.Listeners))
		}
		io.WriteString(write, ", finished")
		write.Close()
		if err := <-ended; err != nil {
			t.Errorf("the request at the address that goes: %v", err)
		}
		s.onlyOne(third)
		refused()
	}))
	// Nothing in common: a handover still, of a service that moves.
	s.next(func(c *config) { c.Listen = []string{more} })
	s.mustReload()
	moved := s.serving(3)
	if n, err := s.askAt(s.local(more)); err != nil || n != moved.Generation {
		t.Errorf("generation %d answers where the service moved to, %v", n, err)
	}
	s.onlyOne(moved)
}

// TestUnix: a unix socket is handed over, by name, and nothing is lost.
func TestUnix(t *testing.T) {
	needLinux(t)
	t.Parallel()
	path := filepath.Join(t.TempDir(), "web.sock")
	s, _, last := startWith(t, config{Listen: []string{"unix " + path}, Grace: 2 * time.Second})
	var asked, failed atomic.Int64
	var first atomic.Value
	over := make(chan struct{})
	var clients sync.WaitGroup
	for i := range 16 {
		clients.Go(func() {
			tr := &http.Transport{DisableKeepAlives: i%2 == 0, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", path)
			}}
			defer tr.CloseIdleConnections()
			client := http.Client{Transport: tr, Timeout: 60 * time.Second}
			for {
				select {
				case <-over:
					return
				case <-time.After(time.Millisecond):
				}
				// A POST: net/http would try a GET again without a word.
				resp, err := client.Post("http://unix/echo", "text/plain", io.MultiReader(strings.NewReader("x")))
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				asked.Add(1)
				if err != nil {
					failed.Add(1)
					first.CompareAndSwap(nil, err.Error())
				}
			}
		})
	}
	for range 10 {
		s.mustReload()
		last = s.serving(last.Generation)
	}
	close(over)
	clients.Wait()
	t.Logf("%d requests, %d failed", asked.Load(), failed.Load())
	if failed.Load() > 0 || asked.Load() == 0 {
		t.Errorf("%d of %d requests failed: %v", failed.Load(), asked.Load(), first.Load())
	}
	s.onlyOne(last)
	for _, err := range s.stop() {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Errorf("%v were left", left)
	}
}

// TestUDP: every datagram is answered, whichever generation it reached.
func TestUDP(t *testing.T) {
	needLinux(t)
	for _, c := range []struct {
		sockets int
		delay   time.Duration // answers are under way when the old generation lets go of its sockets
	}{{1, 0}, {3, 0}, {1, 200 * time.Millisecond}, {3, 200 * time.Millisecond}} {
		t.Run(fmt.Sprintf("%d sockets, answers after %v", c.sockets, c.delay), func(t *testing.T) {
			t.Parallel()
			s, _, last := startWith(t, config{Listen: []string{"udp 127.0.0.1:0", "tcp 127.0.0.1:0"}, Sockets: c.sockets,
				Grace: 2 * time.Second, AnswerDelay: c.delay})
			l := bench.Load{Address: s.address(0), Network: "udp", Clients: 16, Think: 200 * time.Microsecond,
				Body: bytes.Repeat([]byte("x"), 100), Timeout: 20 * time.Second}
			ctx, stop := context.WithCancel(context.Background())
			defer stop()
			type end struct {
				r   *bench.Result
				err error
			}
			ended := make(chan end, 1)
			go func() {
				r, err := l.Run(ctx, nil)
				ended <- end{r, err}
			}()
			for range 10 {
				s.mustReload()
				last = s.serving(last.Generation)
			}
			stop()
			e := <-ended
			if e.err != nil {
				t.Fatal(e.err)
			}
			t.Logf("%d datagrams, %d lost", e.r.Requests, e.r.Failed)
			noFailure(t, e.r)
			s.onlyOne(last)
		})
	}
}
