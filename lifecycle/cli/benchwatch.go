package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	urfave "github.com/urfave/cli/v2"

	"overlap/lifecycle/process"
)

// A bench that is killed (SIGKILL, or SIGPIPE behind a pipe that ended) can't end its server. A
// signal at the parent's death (PR_SET_PDEATHSIG) would not do it: it is lost in each handover,
// since the next generation is a child of the one before, it would kill a launcher and leave its
// program, and it removes no files. So a second process watches: it holds the other end of a pipe,
// and does what the bench would have done when that ends without a word.

// watchCommand is that process as a command, which nobody calls by hand.
const watchCommand = "bench-watch"

// benchPrefix is what the names of benches' directories begin with.
const benchPrefix = "overlap-bench-"

// watchDone is the word that there is nothing left to do.
const watchDone = "done"

// benchWatcher is the bench's side.
type benchWatcher struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

func watchBench(t *benchTarget) (*benchWatcher, error) {
	self, err := ownCommand()
	if err != nil {
		return nil, err
	}
	w := &benchWatcher{cmd: exec.Command(self, watchCommand, t.temporary)}
	w.cmd.Env = environ()
	// No terminal's signals are for it, and who waits for the end of bench's output need not wait for it.
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if w.in, err = w.cmd.StdinPipe(); err == nil {
		err = w.cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start the watcher of the server: %w", err)
	}
	return w, nil
}

// tell names the server's first process, which has not been waited for yet.
func (w *benchWatcher) tell(pid int) { fmt.Fprintln(w.in, pid) }

// end is for when everything has been ended.
func (w *benchWatcher) end() {
	fmt.Fprintln(w.in, watchDone)
	w.in.Close()
	w.cmd.Wait()
}

func (p *program) watchCommand() *urfave.Command {
	return &urfave.Command{
		Name:      watchCommand,
		Hidden:    true,
		Usage:     "end what a bench that was killed has left: bench starts it by itself",
		ArgsUsage: "DIRECTORY",
		Action: func(c *urfave.Context) error {
			if c.NArg() != 1 {
				return unexpected(c, c.Args().Get(1))
			}
			dir := c.Args().First()
			if !strings.HasPrefix(filepath.Base(dir), benchPrefix) { // it is removed
				return &usageError{fmt.Sprintf("%s: %s is not a bench's directory", watchCommand, dir), "bench starts it by itself: overlap bench"}
			}
			return p.watch(dir, os.Stdin)
		},
	}
}

// watch reads what the bench tells until it ends, and does its work where it could not.
func (p *program) watch(temporary string, bench io.Reader) error {
	// What ends the bench may be sent to all that belongs to it.
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM)
	t := newBenchTarget(p, temporary)
	lines := bufio.NewScanner(bench)
	for lines.Scan() {
		if lines.Text() == watchDone {
			return nil
		}
		if pid, err := strconv.Atoi(lines.Text()); err == nil {
			if err := t.follow(pid); err != nil {
				return err
			}
		}
	}
	return t.close()
}

// newBenchTarget is a server with its files below a directory.
func newBenchTarget(p *program, temporary string) *benchTarget {
	return &benchTarget{p: p, name: benchName, temporary: temporary, root: filepath.Join(temporary, "state"),
		exited: make(chan struct{}), said: &tail{}}
}

// follow takes note of a first process that another process started.
func (t *benchTarget) follow(pid int) error {
	t.group = pid
	id, err := process.Of(pid)
	var h *process.Handle
	if err == nil {
		h, err = process.Open(id)
	}
	if errors.Is(err, os.ErrProcessDone) {
		close(t.exited)
		return nil
	}
	if err != nil {
		return err
	}
	go func() {
		defer close(t.exited)
		defer h.Close()
		h.Wait(context.Background())
	}()
	return nil
}
