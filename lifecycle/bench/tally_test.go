package bench

import (
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

const ms = int64(time.Millisecond)

// newTestTally makes a tally of one client without a run.
func newTestTally(base time.Time, marks *Marks) (*tally, *client) {
	l, _ := Load{Address: "127.0.0.1:1"}.withDefaults()
	r := &run{Load: l, base: base, stopping: make(chan struct{}), generations: []string{""}, byName: map[string]uint16{"": 0}}
	r.stopOnce.Do(func() { r.stopAt = int64(time.Second) })
	c := newClient(r, 0)
	return newTally(r, []*client{c}, marks), c
}

// A request is near a switch when any part of it was within 100 ms of one; the mark
// may come after the request ended.
func TestNearAndSteady(t *testing.T) {
	base := time.Now()
	marks := &Marks{}
	tally, c := newTestTally(base, marks)
	for _, s := range []struct {
		start, end int64
		near       bool
	}{
		{0, 1, false},
		{0, 399, false},
		{0, 400, true},      // ends at the window's edge
		{450, 451, true},    // before the switch
		{100, 1900, true},   // across it
		{600, 700, true},    // begins at the edge
		{601, 700, false},   // after it
		{900, 2000, true},   // ends beside the second switch
		{2050, 2051, true},  // near the second
		{2200, 2300, false}, // near a drain end, which does not count
	} {
		took := s.end - s.start
		c.samples = []sample{{start: s.start * ms, end: s.end * ms, mode: Close}}
		near, steady := tally.near.TotalCount(), tally.steady.TotalCount()
		tally.collect()
		tally.settle(0)
		if tally.near.TotalCount() != near || tally.steady.TotalCount() != steady {
			t.Fatalf("%d to %d was settled too early", s.start, s.end)
		}
		if len(marks.All()) == 0 {
			marks.Add(Mark{Switch, 3, base.Add(2000 * time.Millisecond)})
			marks.Add(Mark{Switch, 2, base.Add(500 * time.Millisecond)})
			marks.Add(Mark{Drained, 2, base.Add(2250 * time.Millisecond)})
			marks.Add(Mark{NotSwitched, 4, base.Add(2250 * time.Millisecond)})
		}
		tally.settle(math.MaxInt64)
		if got := tally.near.TotalCount() > near; got != s.near {
			t.Errorf("%d to %d ms (%d ms): near %v, want %v", s.start, s.end, took, got, s.near)
		}
		if tally.near.TotalCount()+tally.steady.TotalCount() != near+steady+1 {
			t.Errorf("%d to %d ms: not counted once", s.start, s.end)
		}
	}
	r := tally.result()
	if r.Handovers != 2 || len(r.Marks) != 4 || r.Marks[0].Generation != 2 || r.NearSwitch.Count+r.Steady.Count != r.Latency.Count {
		t.Errorf("%d handovers, marks %v, near %d, steady %d, whole %d", r.Handovers, r.Marks, r.NearSwitch.Count, r.Steady.Count, r.Latency.Count)
	}
}

// Failed requests are counted, and their time is not taken for a latency.
func TestFailedHaveNoLatency(t *testing.T) {
	tally, c := newTestTally(time.Now(), nil)
	c.samples = []sample{
		{start: 0, end: 5 * ms, mode: Close},
		{start: 0, end: 1, mode: Close, cause: Refused},
		{start: 0, end: 9999 * ms, mode: KeepAlive, cause: Timeout, delayed: true},
	}
	tally.collect()
	tally.settle(math.MaxInt64)
	r := tally.result()
	if r.Requests != 3 || r.Failed != 2 || r.Delayed != 1 || r.ByCause[Refused] != 1 || r.ByCause[Timeout] != 1 {
		t.Errorf("%+v", r)
	}
	if r.Latency.Count != 1 || r.Latency.Max.Round(time.Millisecond) != 5*time.Millisecond || r.ByMode["keepalive"].Failed != 1 {
		t.Errorf("latency %+v, by mode %+v", r.Latency, r.ByMode)
	}
	if want := "2 of 3 requests failed: 1 refused, 1 timeout"; r.Outcome() != want {
		t.Errorf("outcome %q, want %q", r.Outcome(), want)
	}
}

// However long a run is, the timeline's memory is bounded and nothing is lost from it.
func TestTimelineMerges(t *testing.T) {
	line := timeline{width: int64(finestSlot)}
	const n = 20000
	for i := range int64(n) {
		at := i * 37 * ms // 740 s
		line.add(&sample{start: at, end: at + ms*(1+i%3), generation: uint16(i % 5)})
		if i%10 == 0 {
			line.add(&sample{start: at, end: at + ms, cause: Reset})
		}
	}
	var began, ended, failed, byGen int64
	for i := range line.slots {
		s := &line.slots[i]
		for _, c := range s.began {
			began += int64(c)
		}
		for _, c := range s.byGen {
			byGen += c
		}
		ended += s.ended
		failed += s.failed
	}
	if began != n || ended != n || byGen != n || failed != n/10 || len(line.slots) > maxSlots {
		t.Errorf("%d began, %d ended, %d by generation, %d failed in %d slots", began, ended, byGen, failed, len(line.slots))
	}
	if q := line.slots[9].quantile(1); q != 3*time.Millisecond {
		t.Errorf("longest %v, want 3 ms", q)
	}
}

func TestRows(t *testing.T) {
	last := 0
	for ns := int64(1); ns < int64(1000*time.Second); ns += 1 + ns/7 {
		row := rowOf(ns)
		if row < last || row >= rows {
			t.Fatalf("%d ns is in row %d, after row %d", ns, row, last)
		}
		if top := rowTop(row); row < rows-1 && float64(ns) > float64(top)*1.0001 {
			t.Fatalf("%d ns is in row %d, which ends at %v", ns, row, top)
		}
		last = row
	}
	if last != rows-1 {
		t.Errorf("1000 s is in row %d of %d", last, rows)
	}
}

func TestTable(t *testing.T) {
	r := &Result{
		Failures: []Failure{{Offset: 1513 * time.Millisecond, Cause: Reset, Error: "read answer: connection reset by peer"}},
		Requests: 1234567, PerSecond: 61728.4, Failed: 20, Delayed: 3, Handovers: 40, FailedPerHandover: 0.5, IdleClosed: 7,
		ByCause:    map[Cause]int64{Reset: 15, EOF: 5},
		Latency:    Quantiles{1234547, 812 * time.Microsecond, 1240 * time.Microsecond, 12345 * time.Microsecond, 1020 * time.Millisecond},
		NearSwitch: Quantiles{12, time.Millisecond, 2 * time.Millisecond, 100 * time.Millisecond, time.Second},
		ByMode:     map[string]ModeResult{"close": {}},
	}
	for i := range 41 {
		r.ByGeneration = append(r.ByGeneration, GenerationResult{fmt.Sprint(i + 1), 1000})
	}
	const want = `
requests      1,234,567  61,728 a second
failed               20  15 reset, 5 eof
first failed     1.51 s  read answer: connection reset by peer
delayed               3  took 900 ms or longer, as when a SYN is sent again
idle closed           7  connections that the server closed unused: no failure
handovers            40  0.5 failed a handover

latency                  p50      p99    p99.9     max   answered
whole run             812 µs  1.24 ms  12.3 ms  1.02 s  1,234,547
±100 ms of a switch  1.00 ms  2.00 ms   100 ms  1.00 s         12
steady                     -        -        -       -          0

generation           answered
1                       1,000
2                       1,000
3                       1,000
4                       1,000
5                       1,000
6                       1,000
7 to 36                30,000
37                      1,000
38                      1,000
39                      1,000
40                      1,000
41                      1,000
`
	if got := "\n" + r.Table(); got != want {
		t.Errorf("got:%s\nwant:%s", got, want)
	}
}

// Who reads the JSON need not tell null from a list of nothing.
func TestJSONHasNoNull(t *testing.T) {
	data, err := new(Result).JSON()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"marks":[]`, `"by_generation":[]`, `"failures":[]`, `"points":[]`} {
		if !strings.Contains(string(data), want) {
			t.Errorf("no %s in %s", want, data)
		}
	}
}

func TestPerHandover(t *testing.T) {
	for mean, want := range map[float64]string{0: "0", 0.0125: "0.0125", 39.75: "39.8", 99.96: "100", 3399.5: "3,400"} {
		if got := perHandover(mean); got != want {
			t.Errorf("%v: %s, want %s", mean, got, want)
		}
	}
}

func TestGenerationOrder(t *testing.T) {
	names := []string{"v2", "10", "", "9", "blue"}
	slices.SortFunc(names, compareGenerations)
	if got := strings.Join(names, ","); got != "9,10,,blue,v2" {
		t.Error(got)
	}
}

// bytesConn is a connection from which text comes.
type bytesConn struct {
	net.Conn
	io.Reader
}

func (c bytesConn) Read(b []byte) (int, error) { return c.Reader.Read(b) }

// FuzzAnswer feeds the reader anything, in pieces of any size: it must end, and with
// the same outcome however the bytes are cut.
func FuzzAnswer(f *testing.F) {
	for _, text := range []string{
		ok,
		"HTTP/1.1 100 Continue\r\n\r\n" + ok,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a\r\nabc\r\n0\r\nT: x\r\n\r\n",
		"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nabc",
		"HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775807\r\n\r\n",
		"HTTP/1.1 200 OK\r\nOverlap-Generation: 7\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200\r\n\r\n", "HTTP/", "\r\n\r\n", "SSH-2.0-x\r\n",
	} {
		f.Add([]byte(text), 3)
	}
	read := func(text []byte, size int) string {
		_, c := newTestTally(time.Now(), nil)
		c.mode, c.Check = KeepAlive, func(*Answer) error { return nil }
		h := newHTTPClient(c)
		h.conn = bytesConn{Reader: &pieces{text, size}}
		generation, keep, err := h.readAnswer()
		if err != nil {
			return causeOf(err).String()
		}
		return fmt.Sprint(c.generationName(generation), keep, h.answer.Status, string(h.answer.Body))
	}
	f.Fuzz(func(t *testing.T, text []byte, size int) {
		size = 1 + max(size, 0)%4096
		if a, b := read(text, size), read(text, 1<<20); a != b && len(text) < 4096 {
			t.Errorf("in pieces of %d: %q, in one: %q", size, a, b)
		}
	})
}

// pieces is a reader that gives at most size bytes at a time.
type pieces struct {
	text []byte
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	n := copy(b[:min(len(b), p.size)], p.text)
	p.text = p.text[n:]
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}
