// Package repeat tells a second signal to stop, which cuts short, from the same one twice.
package repeat

import "time"

// sameSignal is how long after one signal another counts as the same: terminals and timeout(1)
// send it to the process and to its group.
const sameSignal = 200 * time.Millisecond

// Filter remembers when the last signal came. The zero value has seen none. It is not safe for
// concurrent use.
type Filter struct{ last time.Time }

// Same reports whether a signal that comes now is the last one again.
func (f *Filter) Same() bool {
	now := time.Now()
	same := now.Sub(f.last) < sameSignal
	f.last = now
	return same
}
