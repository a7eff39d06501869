package reuse

import (
	"sync"
	"time"
)

// graces lets those who wait at the same time share one wait: a generation with a hundred addresses
// would else take a hundred threads.
var graces struct {
	mu      sync.Mutex
	next    chan struct{} // closed when a grace period that begins from now on is over; nil: nobody waits
	running bool
}

// grace returns a channel that is closed when every lookup that has begun, on whatever CPU, is over:
// it works on sockets and programs that may have been replaced meanwhile. That takes 5 to 15 ms
// and no CPU time; where the kernel does not tell, a fixed time is waited (graceBlind).
func grace() <-chan struct{} {
	graces.mu.Lock()
	defer graces.mu.Unlock()
	if graces.next == nil {
		graces.next = make(chan struct{})
	}
	if !graces.running {
		graces.running = true
		go runGraces()
	}
	return graces.next
}

// graceBlind is long for a lookup, which takes microseconds, but not for a virtual CPU that is not
// running.
const graceBlind = 3 * time.Millisecond

// kernelGrace waits for the kernel's grace period; tests change it.
var kernelGrace = barrier

func runGraces() {
	for {
		graces.mu.Lock()
		waiting := graces.next
		graces.next = nil
		graces.running = waiting != nil
		graces.mu.Unlock()
		if waiting == nil {
			return
		}
		if err := kernelGrace(); err != nil {
			time.Sleep(graceBlind)
		}
		close(waiting)
	}
}
