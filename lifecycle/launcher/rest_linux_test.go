package launcher_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"overlap/lifecycle/bench"
	"overlap/lifecycle/control"
)

// TestParting: a program without a graceful shutdown loses what it works on when it is stopped;
// with clients that pause between their requests, there is nothing then.
func TestParting(t *testing.T) {
	t.Parallel()
	const reloads = 2
	failed := map[bool]int64{}
	var mu sync.Mutex
	var both sync.WaitGroup
	for _, off := range []bool{false, true} {
		s := newService(t)
		addr := free(t, "tcp", "127.0.0.1")
		s.goProgram(programConfig{Kind: "plain", Listen: []string{addr}})
		s.c.StopDelay, s.c.PartingOff = 4*time.Second, off
		s.start()
		s.serving(0)
		both.Go(func() {
			n := paused(t, addr, func() {
				for range reloads {
					r := s.serving(0)
					out, err := control.Dial(s.socket(r.Generation)).Reload(context.Background(), control.ReloadRequest{Wait: control.WaitDrained}, nil)
					if err != nil || out.Outcome != control.OutcomeSwitched {
						t.Errorf("%+v, %v", out, err)
					}
				}
			})
			mu.Lock()
			defer mu.Unlock()
			failed[off] = n
		})
	}
	both.Wait()
	t.Logf("%d requests failed in %d handovers, %d without the parting", failed[false], reloads, failed[true])
	// One may meet the very moment of its connection's end.
	if failed[false] > 1 {
		t.Errorf("%d requests failed", failed[false])
	}
	if failed[true] < 5 {
		t.Errorf("control: only %d requests failed", failed[true])
	}
}

// TestFirstRequestAfterParting: a client that connected before a handover and makes its first request when the
// kept connections have been ended is answered by a program that waits for it.
func TestFirstRequestAfterParting(t *testing.T) {
	t.Parallel()
	s, addr, _ := polite(t)
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	before := s.reload().From
	s.said(fmt.Sprintf("the old generation has no sockets any more\" service=web generation=%d", before+1)) // the new one says so
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: overlap\r\nConnection: close\r\n\r\n")
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if by := answer.Header.Get("Overlap-Generation"); by != fmt.Sprint(before) {
		t.Errorf("generation %s answered, want the one that the client connected to, %d", by, before)
	}
}

// paused runs f under 20 clients that each make a request of 0.2 s and then pause for 0.25 s, spread
// over time, and returns how many requests failed.
func paused(t *testing.T, addr string, f func()) int64 {
	ctx, stop := context.WithCancel(context.Background())
	var failed atomic.Int64
	var clients, begun sync.WaitGroup
	begun.Add(20)
	for i := range 20 {
		clients.Go(func() {
			time.Sleep(time.Duration(i) * 450 * time.Millisecond / 20)
			var once sync.Once
			l := bench.Load{Address: addr, Clients: 1, Mode: bench.KeepAlive, Path: "/slow", Think: 250 * time.Millisecond, Timeout: waitFor,
				Progress: func(p bench.Snapshot) {
					if p.Requests > 0 {
						once.Do(begun.Done)
					}
				}}
			r, err := l.Run(ctx, nil)
			once.Do(begun.Done)
			if err != nil {
				t.Error(err)
				return
			}
			failed.Add(r.Failed)
		})
	}
	begun.Wait()
	f()
	stop()
	clients.Wait()
	return failed.Load()
}

// TestReloadDuringDrain: who waits for the end of a drain is not told of a failure when the next
// generation has handed over too, and is over before.
func TestReloadDuringDrain(t *testing.T) {
	t.Parallel()
	s := newService(t)
	addr := free(t, "tcp", "127.0.0.1")
	s.goProgram(programConfig{Kind: "plain", Listen: []string{addr}})
	s.c.StopDelay = 4 * time.Second
	s.start()
	first := s.serving(0)
	// A kept connection in the middle of a request keeps the first one draining.
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST /slow HTTP/1.1\r\n"); err != nil {
		t.Fatal(err)
	}
	drained := make(chan control.Outcome, 1)
	go func() {
		out, err := control.Dial(s.socket(first.Generation)).Reload(context.Background(), control.ReloadRequest{Wait: control.WaitDrained}, nil)
		if err != nil {
			t.Error(err)
		}
		drained <- out
	}()
	second := s.serving(first.Generation)
	if out := s.reload(); out.From != second.Generation {
		t.Fatalf("%+v", out)
	}
	select {
	case out := <-drained:
		if out.Outcome != control.OutcomeSwitched {
			t.Errorf("%+v", out)
		}
	case <-time.After(waitFor):
		t.Error("the drain does not end")
	}
}
