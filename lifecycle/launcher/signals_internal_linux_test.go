package launcher

import (
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestSameSignal: a signal to stop that comes to the process and to its group counts once; later it is a second one, which
// cuts short.
func TestSameSignal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &signals{stops: make(chan os.Signal, 4), raw: make(chan os.Signal), done: make(chan struct{})}
		go s.sort()
		s.raw <- syscall.SIGTERM
		s.raw <- syscall.SIGTERM
		time.Sleep(time.Second)
		s.raw <- syscall.SIGTERM
		close(s.raw)
		<-s.done
		if n := len(s.stops); n != 2 {
			t.Errorf("told to stop %d times, want 2", n)
		}
	})
}
