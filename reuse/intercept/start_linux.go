package intercept

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Start starts cmd under the filter. It takes the place of cmd.Start: cmd.Process
// is the program, and cmd.Wait works as always, in Make mode after [AwaitEnd]. All of cmd and its SysProcAttr
// is respected but Ptrace (refused) and Pdeathsig (use Options.ParentDeath). The
// program gets the descriptors 0, 1, 2 and cmd.ExtraFiles, and no other: what the
// launcher has open beyond 2 becomes close-on-exec.
//
// When the program cannot be executed the error is an *exec.Error, as from
// cmd.Start with a path that is not there: errors.Is with os.ErrNotExist or
// os.ErrPermission tells why. Errors of overlap's own are none of these. Where
// the filter is not possible they name what was refused; ErrNested and
// ErrNoAccess can be tested for. After an error no process is left.
//
// Start may be called from several goroutines at a time.
func Start(cmd *exec.Cmd, o Options) (*Tap, error) {
	switch {
	case cmd.Err != nil:
		return nil, cmd.Err
	case cmd.Path == "":
		return nil, errors.New("start program: no command")
	case cmd.Process != nil:
		return nil, fmt.Errorf("start %s: already started", cmd.Path)
	case cmd.SysProcAttr != nil && cmd.SysProcAttr.Ptrace:
		return nil, fmt.Errorf("start %s: SysProcAttr.Ptrace: %w", cmd.Path, errors.ErrUnsupported)
	case o.Mode < Auto || o.Mode > Off:
		return nil, fmt.Errorf("start %s: unknown %v", cmd.Path, o.Mode)
	}
	if _, ok := auditArch(); !ok && o.Mode != Off {
		return nil, fmt.Errorf("start %s under a filter: %w on this architecture", cmd.Path, errors.ErrUnsupported)
	}
	p, err := decide(cmd, o)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	l := launch{cmd: cmd, plan: p, listener: -1, watch: -1, done: make(chan struct{})}
	go l.run()
	<-l.done
	refills().Reset(refillAfter)
	if l.err != nil {
		return nil, l.err
	}
	var listener, watch *os.File
	if l.listener >= 0 {
		// The ioctls of the descriptor block, so they are made only where poll(2) says that they will not.
		listener, watch = os.NewFile(uintptr(l.listener), "seccomp notify"), os.NewFile(uintptr(l.watch), "seccomp notify ready")
	}
	return newTap(listener, watch, p.mode, l.noNewPrivs, o), nil
}

// plan is what a program is started with.
type plan struct {
	mode        Mode
	bind, make  bool // what the filter notifies
	parentDeath bool
}

// decide chooses the way.
func decide(cmd *exec.Cmd, o Options) (plan, error) {
	p := plan{mode: Off, parentDeath: o.ParentDeath}
	if o.Mode == Off {
		return p, nil
	}
	a, err := accessFor(cmd)
	if err != nil {
		return p, err
	}
	if o.Mode != Make {
		refused := errors.Join(a.memory, a.descriptors)
		mayMake := o.Mode == Auto && o.Made != nil && (o.ParentDeath || os.Getpid() == 1)
		if refused == nil && !(mayMake && passing()) {
			p.mode, p.bind = Fetch, true
			return p, nil
		}
		if !mayMake {
			return p, fmt.Errorf("%w: %v (it needs Linux 5.6; the same user, or CAP_SYS_PTRACE; kernel.yama.ptrace_scope below 2; and in a container a seccomp profile with pidfd_getfd, as by docker run --cap-add SYS_PTRACE)", ErrNoAccess, refused)
		}
	}
	p.mode, p.make, p.bind = Make, true, a.memory == nil && o.Bind != nil
	return p, nil
}

// launch is one program's start, on a thread of its own: a seccomp filter and
// no_new_privs are a thread's, and what it starts inherits them. The thread ends
// afterwards, and the launcher's others never had a filter: the runtime makes
// no thread from one that a goroutine is locked to (runtime.LockOSThread).
type launch struct {
	cmd *exec.Cmd
	plan
	done chan struct{} // closed when the rest is known

	listener   int // -1: none
	watch      int // see newWatch
	noNewPrivs bool
	err        error
}

// run must be called in a goroutine of its own.
func (l *launch) run() {
	runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
	if unix.Gettid() == unix.Getpid() {
		// But not the process's first thread, which must stay clean. While it is
		// taken here, the next goroutine gets another.
		go l.run()
		<-l.done
		runtime.UnlockOSThread()
		return
	}
	program := l.begin()
	close(l.done)
	if program < 0 {
		return
	}
	// The kernel kills the program when this thread ends: prctl(2),
	// PR_SET_PDEATHSIG, speaks of the thread that made it.
	p := []unix.PollFd{{Fd: int32(program), Events: unix.POLLIN}}
	for p[0].Revents == 0 {
		if _, err := unix.Poll(p, -1); err != nil && err != unix.EINTR {
			break
		}
	}
	unix.Close(program)
}

// begin starts the program and returns a pidfd of it where this thread must not
// end before the program does, else -1.
func (l *launch) begin() (program int) {
	if err := spendThread(); err != nil {
		l.err = fmt.Errorf("start %s: %w", l.cmd.Path, err)
	}
	if l.err == nil {
		l.err = l.install()
	}
	if l.err == nil {
		l.err = l.exec()
	}
	program = -1
	if l.err == nil && l.parentDeath {
		var err error
		if program, err = unix.PidfdOpen(l.cmd.Process.Pid, 0); err != nil {
			l.err = fmt.Errorf("start %s: %w", l.cmd.Path, os.NewSyscallError("pidfd_open", err))
			l.cmd.Process.Kill()
			l.cmd.Wait()
		}
	}
	if l.err != nil {
		for _, fd := range []*int{&l.listener, &l.watch} {
			if *fd >= 0 {
				unix.Close(*fd)
				*fd = -1
			}
		}
	}
	return program
}

// install puts the filter on this thread.
func (l *launch) install() error {
	if l.mode == Off {
		return nil
	}
	filter, err := assemble(l.bind, l.make)
	if err != nil {
		return fmt.Errorf("start %s: %w", l.cmd.Path, err)
	}
	l.listener, l.noNewPrivs, err = installFilter(filter)
	if err == nil {
		l.watch, err = newWatch(l.listener)
	}
	if err != nil {
		return fmt.Errorf("start %s: %w", l.cmd.Path, err)
	}
	return nil
}

// exec starts the program from this thread.
func (l *launch) exec() error {
	if err := closeOnExecFrom(3); err != nil {
		return fmt.Errorf("start %s: keep the launcher's descriptors: %v", l.cmd.Path, err)
	}
	given := l.cmd.SysProcAttr
	if l.parentDeath {
		attr := syscall.SysProcAttr{}
		if given != nil {
			attr = *given
		}
		attr.Pdeathsig = unix.SIGKILL
		l.cmd.SysProcAttr = &attr
	}
	err := StartCommand(l.cmd)
	l.cmd.SysProcAttr = given
	if err != nil {
		return l.failure(err)
	}
	return nil
}

// failure describes err of starting the program. Only what execve(2) may have said of its
// file is passed on as an *exec.Error; the cause of all else is text only, but for a
// context's end: a caller must not take a permission that fork(2) lacks, or a directory
// that is not there, for the program's.
func (l *launch) failure(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("start %s: %w", l.cmd.Path, err)
	}
	if l.cmd.Dir != "" {
		if derr := unix.Access(l.cmd.Dir+"/.", unix.X_OK); derr != nil { // not a directory, or it may not be entered
			return fmt.Errorf("start %s in %s: %v", l.cmd.Path, l.cmd.Dir, derr)
		}
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return fmt.Errorf("start %s: %v", l.cmd.Path, err)
	}
	switch attr := l.cmd.SysProcAttr; {
	case errno == unix.EAGAIN:
		return fmt.Errorf("start %s: %v%s", l.cmd.Path, err, atLimit(errno))
	case errno == unix.ENOMEM, errno == unix.EMFILE, errno == unix.ENFILE,
		(errno == unix.EPERM || errno == unix.EINVAL) && attr != nil && (attr.Credential != nil || attr.Cloneflags != 0):
		return fmt.Errorf("start %s: %v", l.cmd.Path, err)
	}
	return &exec.Error{Name: l.cmd.Path, Err: errno}
}

// atLimit says what it is that is temporarily unavailable to clone(2).
func atLimit(err error) string {
	if errors.Is(err, unix.EAGAIN) {
		return " (at a limit of processes and threads: docker run --pids-limit, systemd's TasksMax, or ulimit -u)"
	}
	return ""
}

// closeOnExecFrom has all descriptors from first on closed by execve. Before
// Linux 5.11, which cannot do that in one call, it goes through /proc.
func closeOnExecFrom(first int) error {
	err := unix.CloseRange(uint(first), math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if err == nil {
		return nil
	}
	dir, lerr := os.ReadDir("/proc/self/fd")
	if lerr != nil {
		return err
	}
	for _, e := range dir {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= first {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}
