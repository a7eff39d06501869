package lifecycle_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"overlap/lifecycle"
	"overlap/lifecycle/bench"
)

// BenchmarkHandover measures what a handover costs beyond the new process's own start: the time
// from the request for a reload to the switch (reload-ms), the same binary's from exec to the
// moment before it listens (start-ms), measured in turns, and the medians' difference (overhead-ms).
// The aim is less than 10 ms.
func BenchmarkHandover(b *testing.B) {
	s := newService(b, config{Listen: []string{"tcp 127.0.0.1:0"}, Probe: "/healthz", Grace: 10 * time.Millisecond})
	s.start()
	last := s.serving(0)
	idle := s.c
	idle.Fail = "crash before" // it exits where the others begin to listen
	var reloads, starts []float64
	for b.Loop() {
		s.write(idle)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), envChild+"="+s.file)
		began := time.Now()
		cmd.Run()
		starts = append(starts, milliseconds(time.Since(began)))

		s.write(s.c)
		out := s.reload()
		if out.Reason != "" {
			b.Fatal(out.Reason)
		}
		reloads = append(reloads, out.SwitchMS)
		last = s.serving(last.Generation)
		s.onlyOne(last)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(reloads), "reload-ms")
	b.ReportMetric(median(starts), "start-ms")
	b.ReportMetric(median(reloads)-median(starts), "overhead-ms")
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func median(of []float64) float64 {
	slices.Sort(of)
	return of[len(of)/2]
}

// BenchmarkServed measures the same handler served by a generation and by net/http alone, in
// turns, and reports the median of the ratios of requests a second. The aim is 0.98.
func BenchmarkServed(b *testing.B) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("hello\n")) })
	for _, mode := range []bench.Mode{bench.KeepAlive, bench.Close} {
		b.Run(mode.String(), func(b *testing.B) {
			bare, served := serveBare(b, handler), serveGeneration(b, handler)
			rate := func(addr string) float64 {
				r, err := bench.Load{Address: addr, Mode: mode, Clients: 32, Duration: time.Second}.Run(context.Background(), nil)
				if err != nil || r.Failed > 0 {
					b.Fatalf("%v, %+v", err, r)
				}
				return r.PerSecond
			}
			rate(bare)
			rate(served)
			var ratios, rates []float64
			for b.Loop() {
				// Whichever comes second would have a warmer machine.
				first, second := rate(bare), rate(served)
				third, fourth := rate(served), rate(bare)
				ratios = append(ratios, second/first, third/fourth)
				rates = append(rates, second, third)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(median(rates), "requests/s")
			b.ReportMetric(median(ratios), "served/bare")
		})
	}
}

func serveBare(b *testing.B, h http.Handler) (addr string) {
	b.Helper()
	// Go listens with MPTCP by default, which is slower, and a generation can't.
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ln) }()
	b.Cleanup(func() {
		srv.Close()
		<-ended
	})
	return ln.Addr().String()
}

func serveGeneration(b *testing.B, h http.Handler) (addr string) {
	b.Helper()
	g, err := lifecycle.New(lifecycle.Options{Name: "served", StateDir: b.TempDir(), NoSignals: true, IdleGrace: -1,
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	ln, err := g.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	g.HTTP(&http.Server{Handler: h}, ln)
	ended := make(chan error, 1)
	go func() { ended <- g.Run(context.Background()) }()
	b.Cleanup(func() {
		g.Stop()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
	eventually(b, func() error {
		if s := g.State(); s != lifecycle.Serving {
			return fmt.Errorf("state %s", s)
		}
		return nil
	})
	return ln.Addr().String()
}
