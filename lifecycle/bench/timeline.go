package bench

import (
	"math"
	"time"
)

// The timeline is what the pictures are drawn from: equal slots of time, each with
// counts of latencies in rows of equal ratio. When there are maxSlots, pairs are
// merged and slots become twice as wide, so memory is bounded.
const (
	finestSlot = 10 * time.Millisecond
	maxSlots   = 4096

	rowsPerDecade = 10
	lowestRow     = 10 * time.Microsecond // what is shorter is in row 0
	rows          = 7*rowsPerDecade + 1   // up to 100 s
)

type slot struct {
	began   [rows]uint32 // answered requests that began here, by latency
	ended   int64        // answered requests that ended here
	failed  int64        // requests that failed here
	longest int64        // ns, of those in began
	byGen   map[uint16]int64
}

type timeline struct {
	width int64 // ns
	slots []slot
}

// rowOf returns the row of a latency in nanoseconds.
func rowOf(ns int64) int {
	if ns <= int64(lowestRow) {
		return 0
	}
	r := 1 + int(rowsPerDecade*math.Log10(float64(ns)/float64(lowestRow)))
	return min(r, rows-1)
}

// rowTop returns the longest latency of a row.
func rowTop(row int) time.Duration {
	return time.Duration(float64(lowestRow) * math.Pow(10, float64(row)/rowsPerDecade))
}

func (t *timeline) add(s *sample) {
	ended := t.at(s.end)
	if s.cause != 0 {
		ended.failed++
		return
	}
	ended.ended++
	if ended.byGen == nil {
		ended.byGen = make(map[uint16]int64, 2)
	}
	ended.byGen[s.generation]++
	began := t.at(s.start)
	took := s.end - s.start
	began.began[rowOf(took)]++
	began.longest = max(began.longest, took)
}

// at returns the slot of a moment.
func (t *timeline) at(ns int64) *slot {
	i := max(ns, 0) / t.width
	for i >= maxSlots {
		t.merge()
		i = ns / t.width
	}
	for int(i) >= len(t.slots) {
		t.slots = append(t.slots, slot{})
	}
	return &t.slots[i]
}

// merge makes one slot of each pair.
func (t *timeline) merge() {
	t.width *= 2
	n := (len(t.slots) + 1) / 2
	for i := range n {
		merged := t.slots[2*i]
		if 2*i+1 < len(t.slots) {
			merged.absorb(&t.slots[2*i+1])
		}
		t.slots[i] = merged
	}
	clear(t.slots[n:])
	t.slots = t.slots[:n]
}

// absorb adds another slot's counts to this one's.
func (s *slot) absorb(o *slot) {
	for row, n := range o.began {
		s.began[row] += n
	}
	s.ended += o.ended
	s.failed += o.failed
	s.longest = max(s.longest, o.longest)
	if s.byGen == nil {
		s.byGen = make(map[uint16]int64, len(o.byGen))
	}
	for g, n := range o.byGen {
		s.byGen[g] += n
	}
}

// quantile returns the top of the row in which a share of the latencies is reached.
func (s *slot) quantile(share float64) time.Duration {
	var all, seen int64
	for _, n := range s.began {
		all += int64(n)
	}
	if all == 0 {
		return 0
	}
	for row, n := range s.began {
		seen += int64(n)
		if float64(seen) >= share*float64(all) {
			return min(rowTop(row), time.Duration(s.longest))
		}
	}
	return time.Duration(s.longest)
}
