package bench

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// noopServer answers each request with the same few bytes: what a process started
// with BENCH_TEST_CHILD=noop does.
func noopServer() int {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 1
	}
	os.Stdout.WriteString(ln.Addr().String() + "\n")
	go func() { // ends with its parent
		os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	}()
	for {
		conn, err := ln.Accept()
		if err != nil {
			return 1
		}
		go func() {
			defer conn.Close()
			buf := make([]byte, 4096)
			for {
				// A request of the bench or of wrk comes in one piece.
				n, err := conn.Read(buf)
				if err != nil {
					return
				}
				if _, err := conn.Write([]byte(ok)); err != nil {
					return
				}
				if strings.Contains(string(buf[:n]), "Connection: close") {
					return
				}
			}
		}()
	}
}

// startChild starts the test binary as another process and returns its first line.
func startChild(tb testing.TB, name string) string {
	tb.Helper()
	exe, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "BENCH_TEST_CHILD="+name)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { in.Close(); io.Copy(io.Discard, out); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		tb.Fatal(err)
	}
	return strings.TrimSpace(line)
}

var wrkCounts = regexp.MustCompile(`(?s)([0-9]+) requests in .*Requests/sec:\s+([0-9.]+)`)

// cpuTime is what this process has used so far.
func cpuTime(b *testing.B) time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// BenchmarkBesideWrk makes the same load with wrk and with this package against the
// same server that does nothing, in turns, and reports requests a second of both and
// their ratio. The aim is 0.7. On a busy machine the CPU time that each takes for a
// request says more.
func BenchmarkBesideWrk(b *testing.B) {
	wrk, err := exec.LookPath("wrk")
	if err != nil {
		if os.Getenv("OVERLAP_TEST_REQUIRE") == "1" {
			b.Fatal("wrk is missing: apt-get install wrk")
		}
		b.Skip("wrk is missing: apt-get install wrk")
	}
	for _, mode := range []Mode{KeepAlive, Close} {
		b.Run(mode.String(), func(b *testing.B) {
			address := startChild(b, "noop")
			var theirs, ours float64
			var theirCPU, ourCPU time.Duration
			var theirRequests, ourRequests, delayed int64
			for b.Loop() {
				args := []string{"-t2", "-c64", "-d1s"}
				if mode == Close {
					args = append(args, "-H", "Connection: close")
				}
				cmd := exec.Command(wrk, append(args, "http://"+address+"/")...)
				out, err := cmd.CombinedOutput()
				m := wrkCounts.FindSubmatch(out)
				if err != nil || m == nil {
					b.Fatalf("wrk: %v\n%s", err, out)
				}
				n, _ := strconv.ParseInt(string(m[1]), 10, 64)
				rate, _ := strconv.ParseFloat(string(m[2]), 64)
				theirs += rate
				theirRequests += n
				theirCPU += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()

				before := cpuTime(b)
				r, err := Load{Address: address, Mode: mode, Duration: time.Second}.Run(context.Background(), nil)
				if err != nil || r.Failed > 0 {
					b.Fatalf("%v, %+v", err, r.Failures)
				}
				ours += r.PerSecond
				ourRequests += r.Requests
				ourCPU += cpuTime(b) - before
				delayed += r.Delayed
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(theirs/float64(b.N), "wrk/s")
			b.ReportMetric(ours/float64(b.N), "ours/s")
			b.ReportMetric(ours/theirs, "ours/wrk")
			b.ReportMetric(float64(theirCPU.Nanoseconds())/float64(theirRequests)/1e3, "wrk-cpu-µs")
			b.ReportMetric(float64(ourCPU.Nanoseconds())/float64(ourRequests)/1e3, "our-cpu-µs")
			b.ReportMetric(float64(delayed), "delayed")
		})
	}
}
