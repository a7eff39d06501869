package control

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
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

// TestIntroduce: processes that are admitted are told who the owner is, and nothing can be asked for; others
// are not answered.
func TestIntroduce(t *testing.T) {
	for _, admitted := range []bool{true, false} {
		path := socket(t)
		var warnings bytes.Buffer
		asked := make(chan int, 10)
		s, err := Introduce(path, 0o666, func(pid int) bool { asked <- pid; return admitted },
			func() Status { return Status{Service: "web"} }, slog.New(slog.NewTextHandler(&warnings, nil)))
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Lstat(path); err != nil || info.Mode() != os.ModeSocket|0o666 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
		got, err := Dial(path).Brief(t.Context())
		if admitted && (err != nil || got.Service != "web") || !admitted && !errors.Is(err, ErrNoOutcome) {
			t.Errorf("admitted %t: %+v, %v", admitted, got, err)
		}
		if pid := <-asked; pid != os.Getpid() {
			t.Errorf("process %d is looked at, want %d", pid, os.Getpid())
		}
		var refused *StatusError
		if _, err := Dial(path).Stop(t.Context(), StopRequest{}, nil); admitted && (!errors.As(err, &refused) || refused.Code != http.StatusNotFound) || err == nil {
			t.Errorf("admitted %t: a stop: %v", admitted, err)
		}
		if _, err := Dial(path).Session(t.Context()); err == nil {
			t.Errorf("admitted %t: a session was begun", admitted)
		}
		closeServer(t, s)
		if warnings.Len() > 0 {
			t.Errorf("anybody can fill the log: %s", &warnings)
		}
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
