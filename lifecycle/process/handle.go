package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// How often a process is looked at where the kernel gives no event.
const (
	pollFirst = 5 * time.Millisecond
	pollMost  = 100 * time.Millisecond
)

// Handle holds one process, so that no signal goes astray. It is safe for
// concurrent use. Close it when done.
//
// On Linux it is a pidfd (pidfd_open(2), Linux 5.3). Where there is none, it compares
// the start time before each signal, which leaves a window of microseconds.
type Handle struct {
	id      Identity
	pidfd   *os.File      // nil where there is none
	waiting chan struct{} // holds a token while one Wait uses the pidfd's deadline
	closed  chan struct{}
	closing chan struct{} // holds a token once Close has begun
}

// Open takes hold of the process. It wraps ErrElsewhere for an identity of another
// boot or pid namespace, and os.ErrProcessDone when the process does not live any
// more; the identity is verified after the kernel's handle is open.
func Open(id Identity) (*Handle, error) {
	if !id.Here() {
		return nil, fmt.Errorf("open process %d: %w", id.PID, ErrElsewhere)
	}
	pidfd, err := openPidfd(id.PID)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return nil, fmt.Errorf("open process %d: %w", id.PID, err)
	}
	if !id.Alive() {
		if pidfd != nil {
			pidfd.Close()
		}
		return nil, fmt.Errorf("open process %d: %w", id.PID, os.ErrProcessDone)
	}
	return &Handle{
		id:      id,
		pidfd:   pidfd,
		waiting: make(chan struct{}, 1),
		closed:  make(chan struct{}),
		closing: make(chan struct{}, 1),
	}, nil
}

// Signal sends a signal. It wraps os.ErrProcessDone when the process has ended, and
// os.ErrClosed after Close. Signal 0 only checks.
func (h *Handle) Signal(sig syscall.Signal) error {
	err := h.closedOr(nil)
	switch {
	case err != nil:
	case h.pidfd != nil:
		if err = signalPidfd(h.pidfd, sig); err != nil {
			err = h.closedOr(err)
		}
	case !h.id.Alive():
		err = os.ErrProcessDone
	default:
		err = syscall.Kill(h.id.PID, sig)
	}
	if errors.Is(err, syscall.ESRCH) {
		err = os.ErrProcessDone
	}
	if err != nil {
		return fmt.Errorf("signal process %d with %v: %w", h.id.PID, sig, err)
	}
	return nil
}

// SignalAs is Signal for a process that a user named: it wraps syscall.EPERM where that user could not have sent
// it, because neither the real nor the saved user id of the process is that one (kill(2)).
func (h *Handle) SignalAs(uid int, sig syscall.Signal) error {
	// Whom the number belongs to meanwhile does not matter: the handle reaches this process or none.
	if err := signals(uid, h.id.PID); err != nil {
		return fmt.Errorf("signal process %d with %v: %w", h.id.PID, sig, err)
	}
	return h.Signal(sig)
}

// Commands reports whether a user could signal a process, as in [Handle.SignalAs].
func Commands(uid, pid int) bool { return signals(uid, pid) == nil }

func signals(uid, pid int) error {
	if uid == 0 || uid == os.Geteuid() {
		return nil
	}
	real, saved, err := users(pid)
	if err == nil && real != uid && saved != uid {
		err = fmt.Errorf("user %d could not: %w", uid, syscall.EPERM)
	}
	return err
}

// Wait returns nil when the process has ended (it may still be a zombie that its
// parent has to reap). It wraps the context's error when that ends first, and
// os.ErrClosed when the handle is closed meanwhile. Several callers may wait. No
// goroutine is left behind.
func (h *Handle) Wait(ctx context.Context) error {
	if h.pidfd == nil {
		return h.waitPolling(ctx)
	}
	select {
	case h.waiting <- struct{}{}:
		defer func() { <-h.waiting }()
	case <-ctx.Done():
		return h.waitError(ctx.Err())
	case <-h.closed:
		return h.waitError(os.ErrClosed)
	}
	if err := waitPidfd(ctx, h.pidfd); err != nil {
		return h.waitError(h.closedOr(err))
	}
	return nil
}

// closedOr puts the standard error in the place of the poller's own, which it does
// not export, for a file that was closed during the call.
func (h *Handle) closedOr(err error) error {
	select {
	case <-h.closed:
		return os.ErrClosed
	default:
		return err
	}
}

func (h *Handle) waitError(err error) error {
	return fmt.Errorf("wait for process %d: %w", h.id.PID, err)
}

func (h *Handle) waitPolling(ctx context.Context) error {
	pause := pollFirst
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for h.id.Alive() {
		select {
		case <-ctx.Done():
			return h.waitError(ctx.Err())
		case <-h.closed:
			return h.waitError(os.ErrClosed)
		case <-timer.C:
			pause = min(2*pause, pollMost)
			timer.Reset(pause)
		}
	}
	return nil
}

// Close lets go of the process, which does nothing to it, and ends every Wait. A
// second Close wraps os.ErrClosed.
func (h *Handle) Close() error {
	select {
	case h.closing <- struct{}{}:
	default:
		return fmt.Errorf("close the handle of process %d: %w", h.id.PID, os.ErrClosed)
	}
	close(h.closed)
	if h.pidfd == nil {
		return nil
	}
	if err := h.pidfd.Close(); err != nil {
		return fmt.Errorf("close the handle of process %d: %w", h.id.PID, err)
	}
	return nil
}
