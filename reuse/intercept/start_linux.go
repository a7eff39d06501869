package intercept

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Start starts cmd under the filter. It takes the place of cmd.Start: cmd.Process
// is the program, and cmd.Wait works as always. All of cmd and its SysProcAttr
// is respected but Ptrace (refused) and Chroot (the launcher's executable is run
// inside it, through /proc/self/exe, so it needs a /proc). The program gets the
// descriptors 0, 1, 2 and cmd.ExtraFiles, and no other, whatever the launcher
// has open; the signals that the launcher ignores are ignored in it.
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
	case len(os.Args) > 0 && os.Args[0] == stepName:
		return nil, fmt.Errorf("start %s: this program does not call intercept.Main first", cmd.Path)
	}
	if _, ok := auditArch(); !ok && o.Mode != Off {
		return nil, fmt.Errorf("start %s under a filter: %w on this architecture", cmd.Path, errors.ErrUnsupported)
	}
	ctl, err := startStep(cmd, o)
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	t, err := agree(ctl, cmd, o)
	if err == nil {
		if err = release(ctl, cmd); err == nil {
			return t, nil
		}
		t.Close()
	}
	abandon(cmd)
	return nil, err
}

// startStep starts the step in cmd's place and returns the launcher's end of
// the conversation. cmd is as it was afterwards, but for Process.
func startStep(cmd *exec.Cmd, o Options) (*net.UnixConn, error) {
	ours, theirs, err := controlPair()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	defer theirs.Close()
	self, err := executable()
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("start %s: find the launcher's own executable: %w", cmd.Path, err)
	}

	path, args, extra := cmd.Path, cmd.Args, cmd.ExtraFiles
	argv := args
	if len(argv) == 0 {
		argv = []string{path}
	}
	cmd.Path = self
	cmd.Args = append([]string{stepName, strconv.Itoa(3 + len(extra)), path}, argv...)
	cmd.ExtraFiles = append(slices.Clone(extra), theirs)
	err = cmd.Start()
	cmd.Path, cmd.Args, cmd.ExtraFiles = path, args, extra
	if err != nil {
		ours.Close()
		return nil, stepFailure(cmd, self, err)
	}
	return ours, nil
}

// stepFailure describes err of starting the step. Its cause is text only, but
// for a context's end: a caller must not take an os.ErrPermission of the step's
// for the program's.
func stepFailure(cmd *exec.Cmd, self string, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	where := ""
	if cmd.Dir != "" {
		where = " in " + cmd.Dir
	}
	return fmt.Errorf("start %s: start overlap's own step %s%s: %v", cmd.Path, self, where, err)
}

// controlPair makes the two ends of the conversation. Messages keep their
// bounds, and the end of the other side is seen.
func controlPair() (ours *net.UnixConn, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	file, theirs := os.NewFile(uintptr(pair[0]), "launcher"), os.NewFile(uintptr(pair[1]), "step")
	conn, err := net.FileConn(file)
	file.Close()
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}

// executable names the running executable. /proc/self/exe works also where the
// file was replaced or may not be reached by the program's user.
func executable() (string, error) {
	const self = "/proc/self/exe"
	if _, err := os.Stat(self); err == nil {
		return self, nil
	}
	if path, err := os.Executable(); err == nil {
		return path, nil
	}
	return exec.LookPath(os.Args[0])
}

// agree leads the conversation up to where the step waits for "go", with the
// notifications already being answered.
func agree(ctl *net.UnixConn, cmd *exec.Cmd, o Options) (*Tap, error) {
	broken := func(err error) error {
		return fmt.Errorf("start %s: talk to overlap's own step: %w", cmd.Path, err)
	}
	var h hello
	if _, err := receiveMessage(ctl, &h); err != nil {
		return nil, broken(err)
	}
	p, mode, err := decide(cmd, h, o)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	if err := sendMessage(ctl, p); err != nil {
		return nil, broken(err)
	}
	var answer installed
	listener, err := receiveMessage(ctl, &answer)
	switch {
	case err != nil:
		return nil, broken(err)
	case answer.Op != "":
		return nil, fmt.Errorf("start %s: %w", cmd.Path, refusal(answer))
	case p.Filter && listener == nil:
		return nil, broken(errors.New("no notification descriptor came"))
	}
	return newTap(listener, mode, answer.NoNewPrivs, o), nil
}

// decide chooses the way, by trying on the step what will be needed of the
// program. What was refused is text only in its error, as in stepFailure.
func decide(cmd *exec.Cmd, h hello, o Options) (plan, Mode, error) {
	p := plan{ParentDeath: o.ParentDeath, Ignored: ignored()}
	if o.Mode == Off {
		return p, Off, nil
	}
	p.Filter = true
	pid := cmd.Process.Pid
	readable := tryMemory(pid, h.Magic)
	if o.Mode != Make {
		access := readable
		if access == nil {
			access = tryFetch(pid, 3+len(cmd.ExtraFiles))
		}
		if access == nil {
			p.Bind = true
			return p, Fetch, nil
		}
		if o.Mode == Fetch || o.Made == nil || !o.ParentDeath && os.Getpid() != 1 {
			return p, Off, fmt.Errorf("%w: %v (it needs Linux 5.6; the same user, or CAP_SYS_PTRACE; kernel.yama.ptrace_scope below 2; and in a container a seccomp profile with pidfd_getfd, as by docker run --cap-add SYS_PTRACE)", ErrNoAccess, access)
		}
	}
	p.Make, p.Bind = true, readable == nil && o.Bind != nil
	return p, Make, nil
}

// refusal turns what the step could not do into an error, of which only
// ErrNested is more than text.
func refusal(a installed) error {
	err := os.NewSyscallError(a.Op, a.Errno)
	switch a.Errno {
	case unix.EBUSY:
		return fmt.Errorf("%w: %v", ErrNested, err)
	case unix.EINVAL:
		return fmt.Errorf("install filter: %v (user notification needs Linux 5.0)", err)
	case unix.ENOSYS, unix.EPERM:
		return fmt.Errorf("install filter: %v (seccomp is missing in the kernel, or a container's profile forbids it)", err)
	}
	return fmt.Errorf("install filter: %v", err)
}

// release lets the step execute the program, and waits until it has.
func release(ctl *net.UnixConn, cmd *exec.Cmd) error {
	if err := sendMessage(ctl, "go"); err != nil {
		return fmt.Errorf("start %s: talk to overlap's own step: %w", cmd.Path, err)
	}
	var f failed
	_, err := receiveMessage(ctl, &f)
	switch {
	case err == io.EOF:
		return nil
	case err != nil:
		return fmt.Errorf("start %s: talk to overlap's own step: %w", cmd.Path, err)
	}
	return &exec.Error{Name: cmd.Path, Err: f.Errno}
}

// abandon ends a step that will not become the program.
func abandon(cmd *exec.Cmd) {
	cmd.Process.Kill()
	if cmd.WaitDelay == 0 {
		cmd.WaitDelay = time.Second // a Stdin that never ends must not hold this up
	}
	cmd.Wait()
}

// ignored lists the signals that this process ignores.
func ignored() []syscall.Signal {
	var list []syscall.Signal
	for s := syscall.Signal(1); s <= 64; s++ {
		if signal.Ignored(s) {
			list = append(list, s)
		}
	}
	return list
}

func sendMessage(c *net.UnixConn, message any) error {
	b, err := json.Marshal(message)
	if err != nil {
		return err
	}
	_, err = c.Write(b)
	return err
}

// receiveMessage returns io.EOF when the step has closed its end, and the
// descriptor that came along, or nil.
func receiveMessage(c *net.UnixConn, message any) (*os.File, error) {
	b, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			err = io.EOF
		}
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	var file *os.File
	if oobn > 0 {
		if file, err = receivedFile(oob[:oobn]); err != nil {
			return nil, err
		}
	}
	if err := json.Unmarshal(b[:n], message); err != nil {
		if file != nil {
			file.Close()
		}
		return nil, err
	}
	return file, nil
}

func receivedFile(oob []byte) (*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil && len(fds) == 1 {
			// Non-blocking is what makes os.NewFile hand it to the runtime's
			// poller. The ioctls of the descriptor block all the same, so they
			// are made only where poll(2) says that they will not.
			if err := unix.SetNonblock(fds[0], true); err != nil {
				unix.Close(fds[0])
				return nil, os.NewSyscallError("fcntl", err)
			}
			return os.NewFile(uintptr(fds[0]), "seccomp notify"), nil
		}
	}
	return nil, errors.New("no descriptor in the control message")
}
