package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if child := os.Getenv("BENCH_TEST_CHILD"); child != "" {
		os.Exit(children[child]())
	}
	goleak.VerifyTestMain(m)
}

// children are what the test binary does when it is started as another process.
var children = map[string]func() int{"noop": noopServer}

// server accepts connections and lets handle do with them what it likes. The
// connection is closed when handle returns.
func server(t *testing.T, handle func(net.Conn, *bufio.Reader)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				// What hangs does not hang for ever.
				conn.SetDeadline(time.Now().Add(30 * time.Second))
				handle(conn, bufio.NewReader(conn))
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

// readRequest reads one request to its last byte, so that a close after it is a FIN
// and not a reset.
func readRequest(br *bufio.Reader) bool {
	req, err := http.ReadRequest(br)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, req.Body)
	return err == nil
}

// say answers each request with the same bytes, and closes after the first unless keep.
func say(answer string, keep bool) func(net.Conn, *bufio.Reader) {
	return func(conn net.Conn, br *bufio.Reader) {
		for readRequest(br) {
			io.WriteString(conn, answer)
			if !keep {
				return
			}
		}
	}
}

func mustRun(t *testing.T, l Load) *Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	result, err := l.Run(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// Each way of misbehaving ends in its own cause, with a connection for each request
// and with keep-alive. These are the negative controls of all loss tests.
func TestCauses(t *testing.T) {
	reset := func(conn net.Conn) { conn.(*net.TCPConn).SetLinger(0) }
	tests := []struct {
		name   string
		handle func(net.Conn, *bufio.Reader)
		check  func(*Answer) error
		want   Cause // 0: no failure
	}{
		{"good", say(ok, true), nil, 0},
		{"reset before the request", func(c net.Conn, br *bufio.Reader) { reset(c) }, nil, Reset},
		{"reset after the request", func(c net.Conn, br *bufio.Reader) { readRequest(br); reset(c) }, nil, Reset},
		{"reset within the answer", func(c net.Conn, br *bufio.Reader) {
			readRequest(br)
			io.WriteString(c, ok[:30])
			reset(c)
		}, nil, Reset},
		{"close after the request", say("", false), nil, EOF},
		{"close within the head", say(ok[:20], false), nil, EOF},
		{"close before the body", say(ok[:len(ok)-2], false), nil, EOF},
		{"close within the body", say(ok[:len(ok)-1], false), nil, EOF},
		{"close within a chunk", say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", false), nil, EOF},
		{"close before the last chunk", say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", false), nil, EOF},
		{"close after 100", say("HTTP/1.1 100 Continue\r\n\r\n", false), nil, EOF},
		{"status 503", say("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", true), nil, Status},
		{"status 404", say("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", true), nil, Status},
		{"redirect", say("HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", true), nil, 0},
		{"wrong body", say("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"bytes\":4}", true), CheckBytes(5), Body},
		{"right body", say("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"bytes\":5}", true), CheckBytes(5), 0},
		{"stall", func(c net.Conn, br *bufio.Reader) { io.Copy(io.Discard, br) }, nil, Timeout},
		{"stall within the answer", func(c net.Conn, br *bufio.Reader) {
			io.WriteString(c, ok[:20])
			io.Copy(io.Discard, br)
		}, nil, Timeout},
		{"drip", func(c net.Conn, br *bufio.Reader) {
			_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
			for tick := time.NewTicker(5 * time.Millisecond); err == nil; <-tick.C {
				_, err = io.WriteString(c, "x")
			}
		}, nil, Timeout},
		{"another protocol", say("220 mail.example ESMTP\r\n", false), nil, Malformed},
		{"bad length", say("HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", false), nil, Malformed},
		{"bad chunk", say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", false), nil, Malformed},
		{"endless head", func(c net.Conn, br *bufio.Reader) {
			readRequest(br)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nA: ")
			c.Write(bytes.Repeat([]byte("a"), maxHead))
			io.Copy(io.Discard, br)
		}, nil, Malformed},
		{"chunked", say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\n{\"b\r\n8\r\nytes\":5}\r\n0\r\nTrailer: a\r\n\r\n", true), CheckBytes(5), 0},
		{"byte by byte", func(c net.Conn, br *bufio.Reader) {
			for readRequest(br) {
				for _, b := range []byte("HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\nB\r\n{\"bytes\":5}\r\n0\r\n\r\n") {
					c.Write([]byte{b})
				}
			}
		}, CheckBytes(5), 0},
		{"until the end", say("HTTP/1.1 200 OK\r\n\r\n{\"bytes\":5}", false), CheckBytes(5), 0},
		{"until the end, HTTP/1.0", say("HTTP/1.0 200 OK\r\n\r\n{\"bytes\":5}", false), CheckBytes(5), 0},
		{"early hints", say("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"+ok, true), nil, 0},
		{"no content", say("HTTP/1.1 204 No Content\r\n\r\n", true), nil, 0},
	}
	for _, test := range tests {
		for _, mode := range []Mode{Close, KeepAlive} {
			t.Run(test.name+"/"+mode.String(), func(t *testing.T) {
				t.Parallel()
				l := Load{
					Address:  server(t, test.handle),
					Mode:     mode,
					Clients:  2,
					Requests: 6,
					Body:     []byte("hello"),
					Check:    test.check,
				}
				if test.want == Timeout {
					l.Timeout = 60 * time.Millisecond
				}
				r := mustRun(t, l)
				want := map[Cause]int64{}
				if test.want != 0 {
					want[test.want] = 6
				}
				if r.Requests != 6 || !maps.Equal(r.ByCause, want) {
					t.Errorf("%d requests, failed by cause %v, want %v: %+v", r.Requests, r.ByCause, want, r.Failures)
				}
				if r.Failed+r.Latency.Count != r.Requests || len(r.Failures) != int(r.Failed) {
					t.Errorf("%d failed, %d answered, %d listed of %d", r.Failed, r.Latency.Count, len(r.Failures), r.Requests)
				}
			})
		}
	}
}

// A slow answer ends at the time-out also when bytes keep coming, and one that comes
// late but in time is delayed, not failed.
func TestDelayed(t *testing.T) {
	t.Parallel()
	l := Load{Clients: 2, Requests: 2, Address: server(t, func(c net.Conn, br *bufio.Reader) {
		readRequest(br)
		time.Sleep(DelayedAfter) // the slowness is what is tested
		io.WriteString(c, ok)
	})}
	if r := mustRun(t, l); r.Delayed != 2 || r.Failed != 0 {
		t.Errorf("%d delayed, %d failed, want 2 and 0", r.Delayed, r.Failed)
	}
}

// A keep-alive connection that the server closes while nothing is under way costs no
// request, once the client can know of it.
func TestClosedWhileIdleIsNoFailure(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*testing.T, net.Conn){
		"close": func(t *testing.T, c net.Conn) { closeAndWait(t, c) },
		"408 before the close": func(t *testing.T, c net.Conn) {
			io.WriteString(c, "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
			closeAndWait(t, c)
		},
	} {
		t.Run(name, func(t *testing.T) {
			closed := make(chan struct{})
			l := Load{
				Mode: KeepAlive, Clients: 1, Requests: 10,
				Address: server(t, func(c net.Conn, br *bufio.Reader) {
					if readRequest(br) {
						io.WriteString(c, ok)
						end(t, c)
						closed <- struct{}{}
					}
				}),
				// The client is between answer and next request here.
				Check: func(*Answer) error { <-closed; return nil },
			}
			r := mustRun(t, l)
			if r.Failed != 0 || r.Requests != 10 || r.IdleClosed != 9 {
				t.Errorf("%d of %d failed, %d closed idle, want 0 of 10 and 9: %+v", r.Failed, r.Requests, r.IdleClosed, r.Failures)
			}
		})
	}
}

// The counterpart: a close after the next request was sent is a failure.
func TestClosedUnderWayIsFailure(t *testing.T) {
	t.Parallel()
	l := Load{Mode: KeepAlive, Clients: 1, Requests: 10,
		Address: server(t, func(c net.Conn, br *bufio.Reader) {
			readRequest(br)
			io.WriteString(c, ok)
			readRequest(br)
		})}
	if r := mustRun(t, l); r.ByCause[EOF] != 5 || r.Failed != 5 || r.IdleClosed != 0 {
		t.Errorf("failed by cause %v, %d closed idle, want 5 eof and 0", r.ByCause, r.IdleClosed)
	}
}

func TestConnectionCloseIsHonoured(t *testing.T) {
	t.Parallel()
	var conns atomic.Int64
	l := Load{Mode: KeepAlive, Clients: 2, Requests: 10,
		Address: server(t, func(c net.Conn, br *bufio.Reader) {
			conns.Add(1)
			readRequest(br)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
			readRequest(br) // a second request would be cut
		})}
	if r := mustRun(t, l); r.Failed != 0 || r.IdleClosed != 0 || conns.Load() != 10 {
		t.Errorf("%d failed, %d closed idle, %d connections, want 0, 0, 10", r.Failed, r.IdleClosed, conns.Load())
	}
}

// 64 clients post to a real server in both modes, as the loss tests do: what the
// server counted is what the account says, by generation too.
func TestRealServer(t *testing.T) {
	t.Parallel()
	var got, closes, half atomic.Int64
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		if r.Close {
			closes.Add(1)
		}
		w.Header().Set(GenerationHeader, strconv.FormatInt(1+got.Add(1)/(half.Load()+1), 10))
		fmt.Fprintf(w, `{"method":%q,"bytes":%d}`, r.Method, n)
	})
	for _, secure := range []bool{false, true} {
		got.Store(0)
		closes.Store(0)
		srv := httptest.NewUnstartedServer(h)
		l := Load{Path: "/echo", Body: make([]byte, 3000), Check: CheckBytes(3000), Requests: 2000}
		if secure {
			srv.StartTLS()
			roots := x509.NewCertPool()
			roots.AddCert(srv.Certificate())
			l.TLS = &tls.Config{RootCAs: roots, ServerName: "example.com"}
			l.Requests = 200
		} else {
			srv.Start()
		}
		half.Store(l.Requests / 2)
		l.Address = srv.Listener.Addr().String()
		var last Snapshot
		l.Progress = func(s Snapshot) { last = s }
		r := mustRun(t, l)
		srv.Close()
		if r.Failed != 0 || r.Requests != l.Requests || got.Load() != l.Requests {
			t.Fatalf("TLS %v: %d of %d failed, server saw %d: %v", secure, r.Failed, r.Requests, got.Load(), r.Failures)
		}
		if n := r.ByMode["close"].Requests; n != closes.Load() || n == 0 || n == r.Requests {
			t.Errorf("TLS %v: %d in mode close, server saw %d", secure, n, closes.Load())
		}
		want := []GenerationResult{{"1", l.Requests / 2}, {"2", l.Requests / 2}}
		if len(r.ByGeneration) != 2 || r.ByGeneration[0] != want[0] || r.ByGeneration[1] != want[1] {
			t.Errorf("TLS %v: by generation %v, want %v", secure, r.ByGeneration, want)
		}
		if last.Requests != l.Requests || last.Generation == "" {
			t.Errorf("last snapshot: %+v", last)
		}
		var slots, points int64
		for i := range r.line.slots {
			slots += r.line.slots[i].ended
		}
		for _, p := range r.Points {
			points += p.Requests
		}
		if slots != r.Requests || points != r.Requests {
			t.Errorf("TLS %v: %d in slots, %d in points, of %d", secure, slots, points, r.Requests)
		}
	}
}

func TestIdleTLS(t *testing.T) {
	t.Parallel()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	idle := make(chan net.Conn, 1)
	srv.Config.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateIdle {
			idle <- c
		}
	}
	srv.StartTLS()
	defer srv.Close()
	l := Load{
		Address: srv.Listener.Addr().String(), Mode: KeepAlive, Clients: 1, Requests: 6,
		TLS: &tls.Config{InsecureSkipVerify: true},
		Check: func(*Answer) error {
			c := (<-idle).(*tls.Conn)
			c.CloseWrite() // the alert, which the client must not take for an answer
			closeAndWait(t, c.NetConn())
			return nil
		},
	}
	if r := mustRun(t, l); r.Failed != 0 || r.IdleClosed != 5 {
		t.Errorf("%d failed, %d closed idle, want 0 and 5: %v", r.Failed, r.IdleClosed, r.Failures)
	}
}

// In an open loop a stall is paid by all requests that should have begun meanwhile.
func TestOpenLoopCountsFromIntendedTime(t *testing.T) {
	t.Parallel()
	var first sync.Once
	address := server(t, func(c net.Conn, br *bufio.Reader) {
		for readRequest(br) {
			first.Do(func() { time.Sleep(300 * time.Millisecond) })
			io.WriteString(c, ok)
		}
	})
	r := mustRun(t, Load{Address: address, Mode: KeepAlive, Clients: 1, Requests: 20, Rate: 100})
	if r.Requests != 20 || r.Failed != 0 || r.Latency.P50 < 190*time.Millisecond {
		t.Errorf("%d requests, %d failed, p50 %v, want 20, 0, at least 190 ms", r.Requests, r.Failed, r.Latency.P50)
	}
	if last := r.Elapsed; last < 190*time.Millisecond {
		t.Errorf("20 requests at 100 a second took %v", last)
	}
}

// What should have begun and did not has failed, even where all that began was answered. The next
// of a queue that the end meets is no such request.
func TestOpenLoopUnsent(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	address := server(t, func(c net.Conn, br *bufio.Reader) {
		for readRequest(br) {
			<-release
			io.WriteString(c, ok)
		}
	})
	l := Load{Address: address, Clients: 2, Mode: KeepAlive, Rate: 100, Duration: 400 * time.Millisecond}
	l.Progress = func(s Snapshot) { // not before the end of the duration, and before the last of the run
		if s.Elapsed >= l.Duration {
			select {
			case <-release:
			default:
				close(release)
			}
		}
	}
	r := mustRun(t, l)
	if r.Unsent < 25 || r.Requests != r.Unsent+2 || r.Failed != r.Unsent || r.ByCause[Unsent] != r.Unsent || len(r.ByCause) != 1 {
		t.Errorf("%d requests, %d failed, %v, %d unsent, want 2 answered and about 28 unsent", r.Requests, r.Failed, r.ByCause, r.Unsent)
	}
	if want := fmt.Sprintf("%d of %d requests failed: %d unsent", r.Unsent, r.Requests, r.Unsent); r.Outcome() != want {
		t.Errorf("%q, want %q", r.Outcome(), want)
	}
	if text := r.Table(); !strings.Contains(text, "\nnot sent ") || strings.Contains(text, "first failed") {
		t.Error(text)
	}
	if perSecond := r.PerSecond * r.Elapsed.Seconds(); math.Round(perSecond) != 2 {
		t.Errorf("%v requests a second in %v, want the 2 that began", r.PerSecond, r.Elapsed)
	}
	// The same rate at a server that answers, with a client for each request, however busy the machine is.
	address = server(t, func(c net.Conn, br *bufio.Reader) {
		for readRequest(br) {
			io.WriteString(c, ok)
		}
	})
	if r := mustRun(t, Load{Address: address, Clients: 40, Mode: KeepAlive, Rate: 100, Duration: 400 * time.Millisecond}); r.Failed > 0 || r.Unsent > 0 {
		t.Errorf("%d failed, %d unsent", r.Failed, r.Unsent)
	}
}

// A body is compared as it is, whatever way it comes, on a connection that is used again and on one
// that is not.
func TestCheckBody(t *testing.T) {
	t.Parallel()
	answers := map[string]string{
		"hello":   "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"hello\n": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n3\r\nlo\n\r\n0\r\n\r\n",
		"":        "HTTP/1.1 204 No Content\r\n\r\n",
	}
	for body, answer := range answers {
		address := server(t, func(c net.Conn, br *bufio.Reader) {
			for readRequest(br) {
				io.WriteString(c, answer)
			}
		})
		for want := range answers {
			failed := int64(0)
			if want != body {
				failed = 4
			}
			for _, mode := range []Mode{Close, KeepAlive} {
				r := mustRun(t, Load{Address: address, Clients: 1, Mode: mode, Requests: 4, Timeout: time.Second, Check: CheckBody([]byte(want))})
				if r.Requests != 4 || r.Failed != failed || r.ByCause[Body] != failed {
					t.Errorf("%s: %q, want %q: %d of %d failed, %v", mode, body, want, r.Failed, r.Requests, r.Failures)
				}
			}
		}
	}
}

// The end of the context lets requests under way finish and is no error.
func TestContextEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.Background())
	release := make(chan struct{})
	address := server(t, func(c net.Conn, br *bufio.Reader) {
		for readRequest(br) {
			cancel()
			<-release
			io.WriteString(c, ok)
		}
	})
	l := Load{Address: address, Clients: 1, Mode: KeepAlive}
	// Told for the first time well after the cancel: the request was still under way.
	l.Progress = func(s Snapshot) {
		if s.Requests == 0 {
			select {
			case <-release:
			default:
				close(release)
			}
		}
	}
	r, err := l.Run(ctx, nil)
	if err != nil || r.Requests < 1 || r.Failed != 0 {
		t.Fatalf("%+v, %v, want the request answered", r, err)
	}
}

func TestRefusesNonsense(t *testing.T) {
	for _, l := range []Load{
		{Address: "no port"},
		{Address: "127.0.0.1:1", Network: "sctp"},
		{Address: "127.0.0.1:1", Clients: -1},
		{Address: "127.0.0.1:1", Path: "x"},
		{Address: "127.0.0.1:1", Path: "/ HTTP/1.1\r\nA: b"},
		{Address: "127.0.0.1:1", Host: "a\r\nb"},
		{Address: "127.0.0.1:1", Method: "G T"},
		{Address: "127.0.0.1:1", Rate: math.NaN()},
		{Address: "127.0.0.1:1", Rate: math.Inf(1)},
		{Address: "127.0.0.1:1", Mode: 9},
		{Address: "127.0.0.1:1", Network: "udp", Body: make([]byte, maxDatagram)},
	} {
		if r, err := l.Run(context.Background(), nil); err == nil || r != nil || errors.Is(err, ErrGenerator) {
			t.Errorf("%+v: %v, %v, want an error", l, r, err)
		}
	}
}

func TestNames(t *testing.T) {
	for c := Refused; int(c) < causes; c++ {
		var back Cause
		text, _ := c.MarshalText()
		if err := back.UnmarshalText(text); err != nil || back != c {
			t.Errorf("cause %q read back as %v, %v", text, back, err)
		}
	}
	for _, m := range []Mode{Both, Close, KeepAlive} {
		var back Mode
		text, _ := m.MarshalText()
		if err := back.UnmarshalText(text); err != nil || back != m {
			t.Errorf("mode %q read back as %v, %v", text, back, err)
		}
	}
	if err := new(Mode).UnmarshalText([]byte("sideways")); err == nil || !strings.Contains(err.Error(), "keepalive") {
		t.Errorf("an unknown mode: %v", err)
	}
}
