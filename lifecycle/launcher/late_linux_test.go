package launcher_test

import (
	"fmt"
	"slices"
	"syscall"
	"testing"

	"overlap/lifecycle/control"
)

// TestLateSocket: a socket that the old program opens between the switch and the moment when its owner
// hears of it does not bring the connections back.
func TestLateSocket(t *testing.T) {
	t.Parallel()
	s, addr, _ := polite(t, func(_ *service, c *programConfig) { c.Reopen = true })
	old := s.serving(0)
	s.pause("switched")
	outcome := make(chan control.Outcome, 1)
	go func() { outcome <- s.tryReload(control.ReloadRequest{}) }()
	s.paused()
	s.mustAsk(addr, old.Generation+1)
	syscall.Kill(old.Program.PID, syscall.SIGUSR2)
	eventually(t, func() error { // it has been taken in
		r, err := s.open().Read(old.Generation)
		if err != nil {
			return err
		}
		if slices.Equal(r.Listeners[0].Inodes, old.Listeners[0].Inodes) {
			return fmt.Errorf("listeners %+v, before %v", r.Listeners, old.Listeners)
		}
		return nil
	})
	s.goOn()
	if out := <-outcome; out.Outcome != control.OutcomeSwitched {
		t.Fatalf("%+v", out)
	}
	eventually(t, func() error { // the outcome is told a moment before
		n, err := ask(addr)
		if err == nil && n != old.Generation+1 {
			err = fmt.Errorf("generation %d answered", n)
		}
		return err
	})
	s.alone()
	s.mustAsk(addr, old.Generation+1)
}
