package bench

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// MarkKind is what happened at a mark.
type MarkKind uint8

// The kinds of marks.
const (
	// Switch: from here on Generation gets the new connections.
	Switch MarkKind = iota
	// Drained: Generation, an old one, has finished and left.
	Drained
	// NotSwitched: a handover to Generation failed; the old one serves on.
	NotSwitched
)

var markNames = [...]string{"switch", "drained", "not switched"}

func (k MarkKind) String() string {
	if int(k) < len(markNames) {
		return markNames[k]
	}
	return fmt.Sprintf("MarkKind(%d)", uint8(k))
}

// MarshalText returns the name, so that kinds are words in JSON.
func (k MarkKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (k *MarkKind) UnmarshalText(text []byte) error {
	i := slices.Index(markNames[:], string(text))
	if i < 0 {
		return fmt.Errorf("unknown kind of mark %q", text)
	}
	*k = MarkKind(i)
	return nil
}

// Mark is a moment of a handover. The zero At means now.
type Mark struct {
	Kind       MarkKind  `json:"kind"`
	Generation int       `json:"generation,omitempty"` // 0: not known
	At         time.Time `json:"at"`
}

// Marks collects the marks of one run from whoever makes the handovers. The zero
// value is ready for use; all methods may be called from any goroutine, and on
// nil they do nothing.
type Marks struct {
	mu   sync.Mutex
	list []Mark
}

// Add notes a mark. It never blocks on the run. A switch should be told within a
// second of its moment; later ones stand in the picture, but the latencies around
// them may have been counted as steady.
func (m *Marks) Add(mark Mark) {
	if m == nil {
		return
	}
	if mark.At.IsZero() {
		mark.At = time.Now()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list = append(m.list, mark)
}

// All returns a copy of the marks in the order of their moments.
func (m *Marks) All() []Mark {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	list := slices.Clone(m.list)
	slices.SortStableFunc(list, func(a, b Mark) int { return a.At.Compare(b.At) })
	return list
}

// switches returns the moments of the switches since base, in ascending order.
func switches(marks []Mark, base time.Time) []int64 {
	var at []int64
	for _, m := range marks {
		if m.Kind == Switch {
			at = append(at, int64(m.At.Sub(base)))
		}
	}
	slices.Sort(at)
	return at
}
