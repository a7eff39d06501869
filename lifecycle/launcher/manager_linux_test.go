package launcher_test

import (
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"overlap/health/notify"
)

// TestManager: a service manager is told by the launcher, and by nobody else, whose process to watch at each switch, and
// of a stop, but not of a handover's drain.
func TestManager(t *testing.T) {
	told := make(chan notify.Message, 16)
	manager, err := notify.Listen(filepath.Join(t.TempDir(), "manager"), 0o600, func(m notify.Message) bool { told <- m; return true })
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", manager.Path())
	s, _, _ := polite(t, func(_ *service, c *programConfig) { c.Ready = true })
	s.reload()
	s.alone()
	s.runs[0].cmd.Process.Signal(syscall.SIGTERM)
	if code := s.code(s.runs[0]); code != 0 {
		t.Errorf("exit code %d", code)
	}
	pid := s.runs[0].cmd.Process.Pid
	var words []string
	for len(words) < 3 {
		var m notify.Message
		select {
		case m = <-told:
		case <-time.After(waitFor):
			t.Fatalf("it was told %q", words)
		}
		switch {
		case m.Pid != pid:
			t.Errorf("process %d said %v, the launcher is %d", m.Pid, m.Vars, pid)
		case m.Vars["STOPPING"] == "1":
			words = append(words, "stopping")
		case m.Ready() && m.Vars["MAINPID"] == strconv.Itoa(pid):
			words = append(words, "ready")
		default:
			t.Errorf("%v was said", m.Vars)
		}
	}
	if !slices.Equal(words, []string{"ready", "ready", "stopping"}) {
		t.Errorf("it was told %q", words)
	}
}
