package launcher

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"overlap/lifecycle/process"
	"overlap/reuse/intercept"
)

// reaper waits for children that nobody else waits for: orphans of the programs, which come
// to a subreaper (prctl(2), PR_SET_CHILD_SUBREAPER) and to PID 1.
type reaper struct {
	log *slog.Logger

	starts sync.Mutex // held while a child is started

	mu      sync.Mutex
	begun   bool         // a child is started, and is not known yet: nothing is reaped
	known   map[int]bool // somebody waits for them
	watched map[int]chan syscall.WaitStatus

	raw  chan os.Signal
	done chan struct{}
}

func newReaper(log *slog.Logger, changed func()) (*reaper, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become a subreaper: %w", err)
	}
	r := &reaper{log: log, known: map[int]bool{}, watched: map[int]chan syscall.WaitStatus{},
		raw: make(chan os.Signal, 1), done: make(chan struct{})}
	signal.Notify(r.raw, syscall.SIGCHLD)
	go func() {
		defer close(r.done)
		for range r.raw {
			r.reap()
			changed()
		}
	}()
	return r, nil
}

func (r *reaper) close() {
	signal.Stop(r.raw)
	close(r.raw)
	<-r.done
}

// guard starts a child that its starter waits for.
func (r *reaper) guard(start func() (pid int, err error)) error {
	r.starts.Lock()
	defer r.starts.Unlock()
	r.mu.Lock()
	r.begun = true
	r.mu.Unlock()
	pid, err := start() // execve takes as long as its file system
	r.mu.Lock()
	r.begun = false
	if err == nil {
		r.known[pid] = true
	}
	r.mu.Unlock()
	r.reap() // what ended meanwhile
	return err
}

func (r *reaper) forget(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.known, pid)
}

// start is the health checks' way to run a command.
func (r *reaper) start(cmd *exec.Cmd) (wait func() error, err error) {
	err = r.guard(func() (int, error) {
		if err := intercept.StartCommand(cmd); err != nil {
			return 0, err
		}
		return cmd.Process.Pid, nil
	})
	if err != nil {
		return nil, err
	}
	return func() error {
		defer r.forget(cmd.Process.Pid)
		return cmd.Wait()
	}, nil
}

// reap waits for every child that has ended and that nobody else waits for.
func (r *reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.begun {
		return
	}
	for _, pid := range r.children() {
		if r.known[pid] {
			continue
		}
		var status syscall.WaitStatus
		got, err := syscall.Wait4(pid, &status, syscall.WNOHANG, nil)
		if err != nil || got != pid || status.Stopped() { // one that gives a socket is stopped: intercept.AwaitEnd
			continue
		}
		if end := r.watched[pid]; end != nil {
			end <- status
			delete(r.watched, pid)
		}
	}
}

// children are this process's.
func (r *reaper) children() []int {
	children, err := process.Children(os.Getpid())
	if err != nil {
		r.log.Debug("orphans are not seen", "error", err)
	}
	return children
}
