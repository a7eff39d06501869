package control

import (
	"sync"
	"time"
)

// events is the way from a piece of work, which must not be held up, to the answer that
// tells of it.
type events struct {
	mu      sync.Mutex
	waiting []Event
	final   bool
	ready   chan struct{} // holds a token when there is something to take
}

// maxWaiting bounds what is kept for a client that does not read.
const maxWaiting = 10_000

func newEvents() *events { return &events{ready: make(chan struct{}, 1)} }

func (q *events) put(e Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.final || (len(q.waiting) >= maxWaiting && !e.Final) {
		return
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	q.waiting = append(q.waiting, e)
	q.final = e.Final
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// end sees to it that there is a final event: work without an outcome has failed.
func (q *events) end(what string) {
	reason := what + " ended without an outcome"
	q.put(Event{Kind: KindFailed, Text: reason, Final: true, Outcome: &Outcome{Outcome: OutcomeFailed, Reason: reason}})
}

// take waits for events; more is false when the final one is among them.
func (q *events) take() (taken []Event, more bool) {
	<-q.ready
	q.mu.Lock()
	defer q.mu.Unlock()
	taken, q.waiting = q.waiting, nil
	return taken, !q.final
}
