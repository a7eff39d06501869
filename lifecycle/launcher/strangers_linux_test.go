package launcher_test

import (
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"overlap/lifecycle/control"
)

// TestSocketsOfAnotherProcess: who is no process of the program's can't say that it is ready, nor be told by its launcher
// whose it is, though it is the launcher's user.
func TestSocketsOfAnotherProcess(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.c.Probes, s.c.Start = []string{"notify"}, 10*time.Second
	s.goProgram(programConfig{Kind: "polite", Listen: []string{free(t, "tcp", "127.0.0.1")}})
	s.pause("settled") // it waits for the program's READY=1 next
	r := s.start()
	s.paused()
	dir := filepath.Join(s.root, s.c.Name)
	c, err := net.Dial("unixgram", filepath.Join(dir, "1.notify"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := fmt.Fprint(c, "READY=1"); err != nil {
		t.Fatal(err)
	}
	if status, err := control.Dial(filepath.Join(dir, "1.launcher")).Brief(t.Context()); err == nil {
		t.Errorf("it was told %+v", status)
	}
	s.goOn()
	if code := s.code(r); code != 1 {
		t.Errorf("exit code %d, want that of a program that was never ready", code)
	}
}
