package httpdrain

import (
	"io"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"
)

// BenchmarkRatio does each request twice in turn, on net/http alone and on httpdrain, so
// that whatever else the machine does hits both alike. It reports the median times, and
// as ratio the requests a second with httpdrain for each one without:
//
//	go test -run - -bench Ratio -benchtime 20000x ./lifecycle/httpdrain
func BenchmarkRatio(b *testing.B) {
	for _, keep := range []bool{true, false} {
		name := "keepalive"
		if !keep {
			name = "connection"
		}
		b.Run(name, func(b *testing.B) {
			ask := [2]func(){asker(b, keep, false), asker(b, keep, true)}
			var took [2][]time.Duration
			for b.Loop() {
				first := len(took[0]) % 2 // who is first takes turns, too
				for _, i := range []int{first, 1 - first} {
					begin := time.Now()
					ask[i]()
					took[i] = append(took[i], time.Since(begin))
				}
			}
			var median [2]float64
			for i := range took {
				slices.Sort(took[i])
				median[i] = float64(took[i][len(took[i])/2])
			}
			b.ReportMetric(median[0], "ns/nethttp")
			b.ReportMetric(median[1], "ns/httpdrain")
			b.ReportMetric(median[0]/median[1], "ratio")
		})
	}
}

// asker starts a server and returns what does one request.
func asker(b *testing.B, keep, drained bool) func() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := &http.Server{Handler: hello}
	done := make(chan error, 1)
	if drained {
		d := New(srv, Options{})
		go func() { done <- d.Serve(ln) }()
	} else {
		go func() { done <- srv.Serve(ln) }()
	}
	request := "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	if !keep {
		request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	}
	var c net.Conn
	var buf [1024]byte
	b.Cleanup(func() {
		srv.Close()
		<-done
		if c != nil {
			c.Close()
		}
	})
	return func() {
		if c == nil {
			if c, err = net.Dial("tcp", ln.Addr().String()); err != nil {
				b.Fatal(err)
			}
		}
		io.WriteString(c, request)
		if n, err := c.Read(buf[:]); n == 0 { // the answer is small, and written at once
			b.Fatal(err)
		}
		if !keep {
			c.Close()
			c = nil
		}
	}
}

// BenchmarkDrain measures a drain of 1,000 idle connections whose grace is over at once.
func BenchmarkDrain(b *testing.B) {
	const n = 1000
	for b.Loop() {
		b.StopTimer()
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		d := New(&http.Server{Handler: hello}, Options{})
		done := make(chan error, 1)
		go func() { done <- d.Serve(ln) }()
		var cs []net.Conn
		for range n {
			c, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			cs = append(cs, c)
		}
		for d.Counts().Idle < n {
			time.Sleep(time.Millisecond)
		}
		ln.Close()
		closed := make(chan struct{})
		close(closed)
		b.StartTimer()
		if r, err := d.Drain(b.Context(), closed, 0); err != nil || r.Finished != n {
			b.Fatalf("%+v, %v", r, err)
		}
		b.StopTimer()
		<-done
		for _, c := range cs {
			c.Close()
		}
		b.StartTimer()
	}
}
