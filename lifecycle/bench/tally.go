package bench

import (
	"context"
	"slices"
	"sort"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

const (
	collectEvery  = 100 * time.Millisecond
	progressEvery = 2 // collections
	// window is how near to a switch a request counts as near.
	window = 100 * time.Millisecond
	// settle is how long a request is kept before it is counted as near a switch
	// or steady, so that the mark of a switch has time to come.
	settle = time.Second

	maxFailures = 1000 // kept one by one; all are counted
)

// histogram bounds: nanoseconds, 3 digits.
const (
	shortest = int64(time.Microsecond)
	longest  = int64(time.Hour)
)

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(shortest, longest, 3) }

// tally is the book-keeper of a run. One goroutine owns it, the one that called Run;
// the clients' notes are all that it shares with others. Its memory does not grow
// with the number of requests.
type tally struct {
	*run
	clients []*client
	marks   *Marks

	ended    int64 // when the last request did
	requests int64
	failed   int64
	delayed  int64
	byCause  [causes]int64
	byMode   [modes]modeTally
	byGen    []int64
	lastGen  uint16
	failures []Failure

	near, steady *hdrhistogram.Histogram
	pending      []sample // not yet near or steady, about in the order of their ends
	line         timeline
	empty        []sample // a spare slice for the clients

	snapped     Snapshot
	dropsBefore int64 // conntrackDrops at the beginning
}

type modeTally struct {
	requests, failed int64
	latency          *hdrhistogram.Histogram
}

func newTally(r *run, clients []*client, marks *Marks) *tally {
	return &tally{
		run: r, clients: clients, marks: marks,
		near: newHistogram(), steady: newHistogram(),
		line:        timeline{width: int64(finestSlot)},
		dropsBefore: conntrackDrops(),
	}
}

// follow collects until the last client has ended. It also ends the run when its
// time is over.
func (t *tally) follow(ctx context.Context, ended <-chan struct{}) {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	var over <-chan time.Time
	if t.Duration > 0 {
		timer := time.NewTimer(t.Duration)
		defer timer.Stop()
		over = timer.C
	}
	cancelled := ctx.Done()
	for ticks := 1; ; ticks++ {
		select {
		case <-over:
			t.stop(nil)
			over = nil
		case <-cancelled:
			t.stop(nil)
			cancelled = nil
		case <-tick.C:
			elapsed := time.Since(t.base)
			if t.Duration > 0 && elapsed >= t.Duration {
				t.stop(nil) // on a busy machine both may be due: who is told of the time finds it over
			}
			t.collect()
			t.settle(t.now() - int64(settle))
			if ticks%progressEvery == 0 {
				t.progress(elapsed)
			}
		case <-ended:
			t.stop(nil)
			t.collect()
			t.settle(t.now())
			t.progress(time.Since(t.base))
			return
		}
	}
}

// collect takes the clients' notes.
func (t *tally) collect() {
	for _, c := range t.clients {
		samples, failures := c.take(t.empty)
		for i := range samples {
			t.count(&samples[i])
		}
		t.empty = samples
		for _, f := range failures {
			if len(t.failures) < maxFailures {
				t.failures = append(t.failures, f)
			}
		}
	}
}

func (t *tally) count(s *sample) {
	t.requests++
	t.ended = max(t.ended, s.end)
	for int(s.generation) >= len(t.byGen) {
		t.byGen = append(t.byGen, 0)
	}
	t.line.add(s)
	mode := &t.byMode[s.mode]
	if mode.latency == nil {
		mode.latency = newHistogram()
	}
	mode.requests++
	if s.delayed {
		t.delayed++
	}
	if s.cause != 0 {
		t.failed++
		t.byCause[s.cause]++
		mode.failed++
		return
	}
	t.byGen[s.generation]++
	t.lastGen = s.generation
	record(mode.latency, s)
	t.pending = append(t.pending, *s)
}

func record(h *hdrhistogram.Histogram, s *sample) {
	h.RecordValue(min(s.end-s.start, longest)) // in bounds: no error
}

// settle books what ended before a moment as near a switch or steady. A request is
// near when any part of it was within window of a switch.
func (t *tally) settle(before int64) {
	n := 0
	at := switches(t.marks.All(), t.base)
	for ; n < len(t.pending) && t.pending[n].end <= before; n++ {
		s := &t.pending[n]
		i := sort.Search(len(at), func(i int) bool { return at[i] >= s.start-int64(window) })
		if i < len(at) && at[i] <= s.end+int64(window) {
			record(t.near, s)
		} else {
			record(t.steady, s)
		}
	}
	t.pending = slices.Delete(t.pending, 0, n)
}

func (t *tally) progress(elapsed time.Duration) {
	if t.Progress == nil {
		return
	}
	s := Snapshot{
		Elapsed:    elapsed,
		Requests:   t.requests,
		Failed:     t.failed,
		Delayed:    t.delayed,
		Generation: t.generationName(t.lastGen),
		Handovers:  len(switches(t.marks.All(), t.base)),
	}
	if d := s.Elapsed - t.snapped.Elapsed; d > 0 {
		s.Rate = float64(s.Requests-t.snapped.Requests) / d.Seconds()
	}
	t.snapped = s
	t.Progress(s)
}
