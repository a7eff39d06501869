package httpdrain

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// BenchmarkRequest compares a served request with the same on net/http alone, on a
// connection that is kept and with one for each request:
//
//	go test -bench Request -count 10 ./lifecycle/httpdrain
func BenchmarkRequest(b *testing.B) {
	for _, mode := range []struct {
		name string
		keep bool
	}{{"keepalive", true}, {"connection", false}} {
		b.Run(mode.name+"/nethttp", func(b *testing.B) { benchmark(b, mode.keep, false) })
		b.Run(mode.name+"/httpdrain", func(b *testing.B) { benchmark(b, mode.keep, true) })
	}
}

func benchmark(b *testing.B, keep, drained bool) {
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
	defer func() { srv.Close(); <-done }()

	request := "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	if !keep {
		request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	}
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		var c net.Conn
		var r *bufio.Reader
		for pb.Next() {
			if c == nil {
				if c, err = net.Dial("tcp", ln.Addr().String()); err != nil {
					b.Error(err)
					return
				}
				r = bufio.NewReader(c)
			}
			io.WriteString(c, request)
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				b.Error(err)
				return
			}
			io.Copy(io.Discard, res.Body)
			if !keep {
				c.Close()
				c = nil
			}
		}
		if c != nil {
			c.Close()
		}
	})
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
