package control

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestLongPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("d", 200), "1.sock")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	status := func() (Status, error) { return Status{Service: "web"}, nil }
	serve(t, path, &backend{status: status, session: func(_ context.Context, s *Session) {
		s.Handle(echo)
		s.Start()
		<-s.Done()
	}})
	if got, err := Dial(path).Status(t.Context()); err != nil || got.Service != "web" {
		t.Errorf("%+v, %v", got, err)
	}
	s, err := Dial(path).Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Start()
	if err := s.Call(t.Context(), "echo", 1, nil); err != nil {
		t.Error(err)
	}
}

// The mode is not what keeps others out: with it open for all, another user is still
// not answered.
func TestAnotherUserIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	path := socket(t)
	serve(t, path, &backend{status: func() (Status, error) { return Status{}, nil }})
	for p, mode := range map[string]os.FileMode{path: 0o666, filepath.Dir(path): 0o755} {
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ask := func(uid uint32) string {
		// The test binary may lie where another user cannot reach it: a descriptor can.
		file, err := os.Open(self)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		cmd := exec.Command("/proc/self/fd/3")
		cmd.ExtraFiles = []*os.File{file}
		cmd.Dir = "/"
		cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "CONTROL_TEST_CHILD="+path, "CONTROL_TEST_ROLE=ask")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.Output()
		if err != nil {
			t.Logf("uid %d: %v", uid, err)
		}
		return string(out)
	}
	if out := ask(0); out != "answered\n" {
		t.Errorf("root: %q", out)
	}
	if out := ask(12345); !strings.Contains(out, ErrNoOutcome.Error()) {
		t.Errorf("another user: %q", out)
	}
}

func TestNothingIsLeftOpen(t *testing.T) {
	descriptors := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	before := descriptors()
	path := socket(t)
	s := serve(t, path, &backend{
		status: func() (Status, error) { return Status{}, nil },
		reload: func(_ context.Context, _ ReloadRequest, events func(Event)) {
			events(Event{Final: true, Outcome: &Outcome{}})
		},
		session: func(_ context.Context, s *Session) { s.Start(); <-s.Done() },
	})
	for range 20 {
		if _, err := Dial(path).Status(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := Dial(path).Reload(t.Context(), ReloadRequest{}, nil); err != nil {
			t.Fatal(err)
		}
		session, err := Dial(path).Session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		session.Close()
	}
	closeServer(t, s)
	// Other tests' connections may still be closing, hence no more than.
	waitFor(t, func() bool { return descriptors() <= before+1 })
}
