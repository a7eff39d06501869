package main

import (
	"context"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"overlap/lifecycle/bench"
	"overlap/test/compare/internal/serve"
	"overlap/test/netns"
)

// envServer makes the test binary the server of the comparison.
const envServer = "COMPARE_TEST_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(envKeeper) != "" {
		os.Exit(keep())
	}
	if os.Getenv(envServer) != "" {
		os.Exit(serve.Main(os.Args[1:]))
	}
	if os.Getenv(envTrial) != "" {
		os.Exit(one())
	}
	// Programs with the race detector sleep for a second before they exit; the servers need not.
	os.Setenv("GORACE", strings.TrimSpace(os.Getenv("GORACE")+" atexit_sleep_ms=0"))
	netns.Enter()
	goleak.VerifyTestMain(m)
}

func needLinux(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("the comparison needs Linux")
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// The whole way, small: two rivals, two reloads each, table and picture.
func TestTwoRivals(t *testing.T) {
	needLinux(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	chosen, err := choose("reuseport,library")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "compare-") // short, for the path of a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &comparison{rounds: 1, reloads: 2, clients: 4, every: 50 * time.Millisecond, steady: 100 * time.Millisecond,
		rivals: chosen, idle: 1, modes: []bench.Mode{bench.Close}, dir: dir, program: []string{self}, env: []string{envServer + "=1"}, ownNetwork: canIsolate(), log: testWriter{t}}
	rep, err := c.run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	rep.place = describe(nil)
	out := filepath.Join(dir, "compare.md")
	if err := rep.write(out, nil); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"reuseport", "library"} {
		r := rep.find(key, bench.Close)
		if r == nil || !r.measured() || len(r.problems) > 0 {
			t.Fatalf("%s was not measured: %+v", key, r)
		}
		if r.requests == 0 || r.handovers != 2 || r.switched <= 0 || r.near <= 0 || r.reloadCPU <= 0 || r.ratio <= 0 {
			t.Errorf("%s: something was not measured: %+v", key, r)
		}
		if n := len(r.outcomes[0].Result.ByGeneration); n < 2 {
			t.Errorf("%s: answers of %d generations, want several", key, n)
		}
	}
	table, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| go-reuseport and Shutdown |", "| overlap, the library |", "(compare.svg)", "Who wins", "go run ./test/compare"} {
		if !strings.Contains(string(table), want) {
			t.Errorf("the table has no %q:\n%s", want, table)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "trial-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// What a rival leaves behind comes back to the keeper, is counted, and is ended.
func TestKeeperEndsOrphans(t *testing.T) {
	needLinux(t)
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	k, err := newKeeper(t.TempDir(), log)
	if err != nil {
		t.Fatal(err)
	}
	// The shell burns some time, leaves an orphan that ignores SIGTERM, and goes.
	script := `i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sh -c 'echo $$ >&2; trap "" TERM; exec sleep 1000' & :`
	if _, err := k.start([]string{"/bin/sh", "-c", script}); err != nil {
		t.Fatal(err)
	}
	var u answer
	var orphan int
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if u, err = k.usage(); err != nil {
			t.Fatal(err)
		}
		said, _ := os.ReadFile(log.Name())
		if orphan, err = strconv.Atoi(strings.TrimSpace(string(said))); err == nil && u.Live == 1 {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("%d processes, it said %q; want 1", u.Live, said)
		}
	}
	if u.CPU < time.Millisecond || u.CPU > time.Minute {
		t.Errorf("CPU time %v, want what the shell used", u.CPU)
	}
	if err := k.close(); err != nil {
		t.Error(err)
	}
	for _, pid := range []int{k.cmd.Process.Pid, orphan} {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d lives: %v", pid, err)
		}
	}
}

func TestStartFails(t *testing.T) {
	needLinux(t)
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	k, err := newKeeper(t.TempDir(), log)
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	if _, err := k.start([]string{"/does/not/exist"}); err == nil || !strings.Contains(err.Error(), "start /does/not/exist") {
		t.Errorf("got %v", err)
	}
	if _, err := k.usage(); err != nil {
		t.Errorf("after a failure: %v", err)
	}
}

func TestNames(t *testing.T) {
	if _, err := choose("reuseport,nobody"); err == nil {
		t.Error("chose a rival that is not there")
	}
	seen := make(map[string]bool)
	for _, r := range rivals {
		if seen[r.key] || seen[r.title] || r.how == "" || r.start == nil {
			t.Errorf("rival %q is not told apart or not whole", r.key)
		}
		seen[r.key], seen[r.title] = true, true
	}
	for text, want := range map[string]string{
		"nginx version: nginx/1.22.1\n":            "1.22.1",
		"HAProxy version 2.6.12-1+deb12u4 2026/10": "2.6.12-1+deb12u4",
		"v20.20.2":       "20.20.2",
		"no number here": "",
		"/usr/bin/start_server: unknown option\n\n": "",
	} {
		if got := version(text); got != want {
			t.Errorf("version(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestFlags(t *testing.T) {
	for _, bad := range [][]string{{"-mode", "udp"}, {"-mode", "x"}, {"-rounds", "0"}, {"-reloads", "-1"}, {"-rivals", "x"}, {"more"}} {
		if err := run(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

// A mode is the median of its rounds, ratios are of the same round, and counts are sums.
func TestSums(t *testing.T) {
	rep := madeUp(t)
	rep.sum()
	r := rep.find("library", bench.Close)
	if r.requests != 3000 || r.failed != 0 || r.handovers != 6 || r.near != 20*time.Millisecond || r.longest != 3*time.Second {
		t.Errorf("sums: %+v", r)
	}
	if math.Abs(r.ratio-2) > 1e-9 || math.Abs(r.kept-0.5) > 1e-9 {
		t.Errorf("ratio %v, kept %v, want 2 and 0.5", r.ratio, r.kept)
	}
	if r := rep.find("reuseport", bench.Close); r.aHandover() != 5 || r.lossless() || !strings.Contains(r.failures(), "20 reset, 10 eof") {
		t.Errorf("%v a handover, %s", r.aHandover(), r.failures())
	}
	if r := rep.find("nginx", bench.Close); r.measured() || r.lossless() {
		t.Error("a rival that failed counts as measured")
	}
}

// Where a rival wins the text says so, and what its win costs.
func TestWinners(t *testing.T) {
	rep := madeUp(t)
	rep.sum()
	text := strings.Join(rep.winners(bench.Close), "\n")
	for _, want := range []string{
		"nothing failed and nothing was delayed with HAProxy, master-worker; overlap, the library.",
		"time to the switch: **a rival wins**: HAProxy, master-worker (10.0 ms), before overlap, the library (30.0 ms); better still, at the price of 30 failed and 0 delayed: go-reuseport and Shutdown (5.00 ms).",
		"CPU time of a reload: overlap, the library (4.00 ms) wins, the best rival without loss is HAProxy, master-worker (9.00 ms).",
		"p99.9 near a switch, Go: overlap, the library (20.0 ms); no rival without loss to compare it with.",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	page := rep.markdown("")
	for _, want := range []string{"| **10.0 ms** (10.0 ms) |", "| nginx | not measured", "nginx, close: round 1 was not measured: broken", "Node cluster: no node"} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q in:\n%s", want, page)
		}
	}
}

// Who lost no request, but had a reload that gave up, is neither without loss nor better at a price.
func TestWinnersWithoutPrice(t *testing.T) {
	rep := madeUp(t)
	rep.sum()
	r := rep.find("reuseport", bench.Close)
	r.failed, r.problems = 0, []string{"round 2: a reload failed: it gave up"}
	text := strings.Join(rep.winners(bench.Close), "\n")
	if strings.Contains(text, "better still") || strings.Contains(text, r.title) {
		t.Errorf("a price of nothing in:\n%s", text)
	}
}

// madeUp is a report of three rounds.
func madeUp(t *testing.T) *report {
	t.Helper()
	c := &comparison{rounds: 3, reloads: 2, clients: 1, modes: []bench.Mode{bench.Close}}
	for i := range rivals {
		c.rivals = append(c.rivals, &rivals[i])
	}
	rep := newReport(c)
	one := func(round int, failed int64, near, switched, cpu time.Duration, before, during float64) *outcome {
		o := &outcome{Switches: []time.Duration{switched, switched}, ReloadCPU: []time.Duration{cpu, cpu}, Before: before, During: during}
		o.Result = &bench.Result{Requests: 1000, Failed: 3 * failed, Handovers: 2, ByCause: map[bench.Cause]int64{}}
		if failed > 0 {
			o.Result.ByCause[bench.Reset], o.Result.ByCause[bench.EOF] = 2*failed, failed
		}
		o.Result.NearSwitch.P999, o.Result.Latency.Max = near, time.Duration(round+1)*time.Second
		return o
	}
	ms := time.Millisecond
	for round := range 3 {
		speed := float64(1 + round) // each round on another machine, as it were
		for i, r := range c.rivals {
			switch r.key {
			case "reuseport":
				o := one(round, 0, 40*ms, 5*ms, 6*ms, 100*speed, 100*speed)
				if round == 1 {
					o.Result.Failed, o.Result.ByCause[bench.Reset], o.Result.ByCause[bench.EOF] = 30, 20, 10
				}
				rep.add(c.rivals[i], bench.Close, round, o, nil)
			case "library":
				rep.add(c.rivals[i], bench.Close, round, one(round, 0, 20*ms, 30*ms, 4*ms, 400*speed, 200*speed), nil)
			case "haproxy":
				rep.add(c.rivals[i], bench.Close, round, one(round, 0, 10*ms, 10*ms, 9*ms, 400*speed, 200*speed), nil)
			case "nginx":
				rep.add(c.rivals[i], bench.Close, round, nil, errors.New("broken"))
			}
		}
	}
	rep.skip(c.rivals[8], "no node")
	return rep
}

// The picture is well-formed, and shows everybody who was measured.
func TestPicture(t *testing.T) {
	rep := madeUp(t)
	rep.sum()
	picture := rep.picture()
	d := xml.NewDecoder(strings.NewReader(picture))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"overlap, the library</text>", "go-reuseport and Shutdown</text>", ">30.0 ms</text>", ">0</text>"} {
		if !strings.Contains(picture, want) {
			t.Errorf("no %q in the picture", want)
		}
	}
	if strings.Contains(picture, "nginx</text>") || strings.Contains(picture, "NaN") {
		t.Error("the picture shows what was not measured")
	}
}

// A picture of nothing at all must not fail either.
func TestEmptyPicture(t *testing.T) {
	rep := newReport(&comparison{modes: []bench.Mode{bench.Close, bench.KeepAlive}})
	rep.sum()
	if picture := rep.picture(); strings.Contains(picture, "NaN") || strings.Contains(picture, "Inf") {
		t.Errorf("not a number in %s", picture)
	}
}

func TestRate(t *testing.T) {
	start := time.Unix(1000, 0)
	r := &bench.Result{Started: start}
	for i := range 10 {
		r.Points = append(r.Points, bench.Point{Offset: time.Duration(i) * time.Second, Width: time.Second, Requests: 100})
	}
	perSecond, n := rate(r, start.Add(1500*time.Millisecond), start.Add(4*time.Second))
	if math.Abs(n-250) > 1e-6 || math.Abs(perSecond-100) > 1e-6 {
		t.Errorf("%v requests, %v a second; want 250 and 100", n, perSecond)
	}
	if perSecond, n := rate(r, start, start); perSecond != 0 || n != 0 {
		t.Errorf("in no time: %v requests, %v a second", n, perSecond)
	}
}
