package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	outputLimit = 4 << 10                // bytes at the end of a command's output that are kept
	outputDelay = 200 * time.Millisecond // how long output is waited for after the command's end
)

// execProbe runs a command; exit code 0 is healthy. The command gets a process
// group of its own, and whatever is left of the group when the command has
// ended, or ctx has, is killed. (What left the group by itself is out of reach.)
type execProbe struct {
	words []string
}

func (p execProbe) check(ctx context.Context, t Target) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var output tail
	cmd := exec.CommandContext(ctx, p.words[0], p.words[1:]...)
	cmd.Env = append([]string{}, t.Env...) // nil would be this process's
	cmd.Dir = t.Dir
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = groupOfItsOwn()
	group := &group{cmd: cmd}
	cmd.Cancel = group.kill
	cmd.WaitDelay = outputDelay

	// The kernel sends the parent-death signal when the thread dies that made
	// the child (prctl(2)): keep it until the child has ended.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	wait, err := start(cmd, t)
	if err != nil {
		return fmt.Errorf("start command: %w", err)
	}
	err = group.wait(wait)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the command was killed%s", output.lastLine())
	case cmd.ProcessState != nil && cmd.ProcessState.Success():
		return nil // perhaps with somebody outside the group holding its output open
	case err == nil:
		return errors.New("the command ended, but how is not known")
	default:
		return fmt.Errorf("the command ended with %w%s", err, output.lastLine())
	}
}

func start(cmd *exec.Cmd, t Target) (wait func() error, err error) {
	if t.Start != nil {
		return t.Start(cmd)
	}
	return cmd.Wait, cmd.Start()
}

// group is the command's process group. Its number stays the command's as long
// as the command is not reaped; after that nothing may be sent to it.
type group struct {
	cmd *exec.Cmd

	mu    sync.Mutex
	ended bool
}

// kill ends whatever is in the group.
func (g *group) kill() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended {
		return os.ErrProcessDone
	}
	return g.killLocked()
}

func (g *group) killLocked() error {
	err := syscall.Kill(-g.cmd.Process.Pid, syscall.SIGKILL)
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p[max(0, len(p)-outputLimit):]...)
	if extra := len(t.buf) - outputLimit; extra > 0 {
		t.buf = append(t.buf[:0], t.buf[extra:]...)
	}
	return len(p), nil
}

// lastLine is the last line that is not blank, to stand behind a message.
func (t *tail) lastLine() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := bytes.TrimSpace(t.buf)
	if i := bytes.LastIndexAny(out, "\r\n"); i >= 0 {
		out = out[i+1:]
	}
	return excerpt([]byte(strings.ToValidUTF8(string(out), "\uFFFD")))
}
