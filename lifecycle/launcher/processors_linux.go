package launcher

import "runtime"

// onOneProcessor has this process's goroutines share one processor, until the returned function is called. A
// launcher waits for the kernel and for its program, and computes next to nothing; where the runtime has more
// processors it keeps threads awake that look for work, which was a quarter of what a handover
// costs, on two. What is ready to run on one is not delayed by more than the few steps of the others.
func onOneProcessor() (undo func()) {
	before := runtime.GOMAXPROCS(1)
	return func() { runtime.GOMAXPROCS(before) }
}
