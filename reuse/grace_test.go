package reuse

import (
	"sync"
	"testing"
	"time"
)

// TestGrace: who waits at the same time waits together, and whoever comes during a wait gets one that begins later.
func TestGrace(t *testing.T) {
	for range 3 {
		var all sync.WaitGroup
		began := time.Now()
		for range 200 {
			all.Go(func() { <-grace() })
		}
		all.Wait()
		t.Logf("200 at once: %v", time.Since(began))
	}
	first := grace()
	for {
		graces.mu.Lock()
		taken := graces.next == nil
		graces.mu.Unlock()
		if taken { // it is under way
			break
		}
		time.Sleep(time.Microsecond)
	}
	select {
	case <-first:
		t.Skip("it was over at once")
	default:
	}
	second := grace()
	if first == second {
		t.Fatal("a wait that had begun was shared")
	}
	<-second
	select {
	case <-first:
	default:
		t.Fatal("the second ended before the first")
	}
}
