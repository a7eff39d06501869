package test

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// TestClosedLog: whoever read the launcher's log has gone. That is no reason to end.
func TestClosedLog(t *testing.T) {
	p := newPlace(t)
	port := freePort(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cmd := exec.Command("overlap", "run", "--name", "web", "--stop-delay", "100ms", "--", "fixture", "--listen", "127.0.0.1:"+port)
	cmd.Dir, cmd.Env, cmd.Stderr = p.dir, p.env(), w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	launcher := p.follow("closed", cmd)
	first := p.serves("web", 0)
	r.Close()
	p.must("overlap", "reload", "--wait", "drained")
	p.serves("web", first)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("the launcher is gone: %v", err)
	}
	p.ends(launcher, 0)
}
