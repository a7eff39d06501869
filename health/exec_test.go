package health

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestExec(t *testing.T) {
	if err := check(t, mustParse(t, `exec:sh -c 'test "$A" = b && test -z "$HOME"'`, Options{}), Target{Env: []string{"A=b"}}); err != nil {
		t.Error(err)
	}
	t.Setenv("OVERLAP_TEST_SECRET", "x")
	if err := check(t, mustParse(t, `exec:sh -c 'test -z "$OVERLAP_TEST_SECRET"'`, Options{}), Target{}); err != nil {
		t.Errorf("an empty environment is not empty: %v", err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "here"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := check(t, mustParse(t, "exec:test -f here", Options{}), Target{Dir: dir}); err != nil {
		t.Error(err)
	}
	wantError(t, check(t, mustParse(t, `exec:sh -c 'echo one; echo two >&2; echo; exit 3'`, Options{}), Target{}),
		`the command ended with exit status 3: "two"`)
	wantError(t, check(t, mustParse(t, `exec:sh -c 'kill -9 $$'`, Options{}), Target{}), "signal: killed")
	err := check(t, mustParse(t, "exec:/nowhere/check", Options{}), Target{})
	wantError(t, err, "start command")
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v does not wrap os.ErrNotExist", err)
	}
}

func TestExecStart(t *testing.T) {
	var steps []string
	target := Target{Start: func(cmd *exec.Cmd) (func() error, error) {
		steps = append(steps, "start")
		return func() error {
			steps = append(steps, "wait")
			return cmd.Wait()
		}, cmd.Start()
	}}
	if err := check(t, mustParse(t, "exec:true", Options{}), target); err != nil {
		t.Error(err)
	}
	if got := strings.Join(steps, " "); got != "start wait" {
		t.Errorf("steps %q", got)
	}
}

// holders makes a FIFO. The function opens it when a process has it open for
// writing, and returns when no process has any more.
func holders(t *testing.T) (path string, open func() (gone func())) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, func() func() {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		return func() {
			defer f.Close()
			f.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.Copy(io.Discard, f); err != nil {
				t.Errorf("a process is left: %v", err)
			}
		}
	}
}

// At the time-out the command dies, and its children with it.
func TestExecKillsGroup(t *testing.T) {
	path, open := holders(t)
	spec := mustParse(t, `exec:sh -c '(exec 3>"$FIFO"; exec sleep 1000) & wait'`, Options{})
	ctx, cancel := context.WithCancelCause(t.Context())
	result := make(chan error, 1)
	go func() { result <- spec.Check(ctx, Target{Env: []string{"FIFO=" + path, "PATH=" + os.Getenv("PATH")}}) }()
	gone := open()
	cancel(errors.New("no answer within a while"))
	gone()
	wantError(t, <-result, "no answer within a while", "killed")
}

// What a healthy command leaves in the background dies too.
func TestExecLeavesNothing(t *testing.T) {
	path, open := holders(t)
	spec := mustParse(t, `exec:sh -c 'exec 3>"$FIFO"; sleep 1000 &'`, Options{})
	result := make(chan error, 1)
	go func() {
		result <- spec.Check(t.Context(), Target{Env: []string{"FIFO=" + path, "PATH=" + os.Getenv("PATH")}})
	}()
	open()()
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestTail(t *testing.T) {
	var out tail
	for range 1000 {
		io.WriteString(&out, "a line of many\n")
	}
	io.WriteString(&out, strings.Repeat("x", 2*outputLimit)+"\nlast\r\n\n")
	if got := out.lastLine(); got != `: "last"` {
		t.Errorf("last line %s", got)
	}
	if len(out.buf) > outputLimit {
		t.Errorf("%d bytes kept", len(out.buf))
	}
}
