package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// openPidfd opens a pidfd that the runtime's poller can wait for. It wraps
// errors.ErrUnsupported where the kernel, or a container's seccomp profile, has no
// pidfd_open.
func openPidfd(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil, os.ErrProcessDone
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("pidfd_open: %w: %w", errors.ErrUnsupported, err)
	case err != nil:
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	// PIDFD_NONBLOCK is 5.10; the flag set afterwards works everywhere, and is what
	// makes os.NewFile give the descriptor to the poller.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(fd), fmt.Sprintf("pidfd:%d", pid))
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		f.Close()
		return nil, fmt.Errorf("wait for a pidfd: %w: %w", errors.ErrUnsupported, err)
	}
	return f, nil
}

func signalPidfd(f *os.File, sig syscall.Signal) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := conn.Control(func(fd uintptr) {
		sent = unix.PidfdSendSignal(int(fd), sig, nil, 0)
	}); err != nil {
		return err
	}
	return sent
}

// waitPidfd waits until the pidfd is readable, which it is when the process has
// ended (pidfd_open(2)). Only one caller at a time: the deadline is the file's.
func waitPidfd(ctx context.Context, f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		f.SetReadDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	defer func() {
		if !stop() {
			<-interrupted
			f.SetReadDeadline(time.Time{})
		}
	}()
	var failed error
	err = conn.Read(func(fd uintptr) bool {
		var ended bool
		ended, failed = readable(int(fd))
		return ended || failed != nil
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	return failed
}

func readable(fd int) (bool, error) {
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return n > 0, os.NewSyscallError("poll", err)
	}
}
