package intercept

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// waitKillable is SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, which a test does without, as kernels before 5.19.
var waitKillable = uintptr(unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)

// installFilter puts a filter on the calling thread, and returns the descriptor for its
// notifications and whether no_new_privs had to be set. Of its errors only ErrNested is more
// than text.
func installFilter(filter []unix.SockFilter) (listener int, noNewPrivs bool, err error) {
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// WAIT_KILLABLE_RECV (Linux 5.19): once the launcher has the notification,
	// only a fatal signal interrupts the call. Go programs get a signal every
	// 10 ms, each of which would start it anew.
	flags := uintptr(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW) | waitKillable
	for {
		fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
		switch {
		case errno == 0:
			runtime.KeepAlive(filter)
			return int(fd), noNewPrivs, nil
		case errno == unix.EACCES && !noNewPrivs:
			if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
				return -1, false, fmt.Errorf("install filter: %v", os.NewSyscallError("prctl(PR_SET_NO_NEW_PRIVS)", err))
			}
			noNewPrivs = true
		case errno == unix.EINVAL && flags&unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV != 0:
			flags &^= unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
		default:
			return -1, noNewPrivs, refusal(errno)
		}
	}
}

// refusal says why there is no filter.
func refusal(errno syscall.Errno) error {
	err := os.NewSyscallError("seccomp(SECCOMP_SET_MODE_FILTER)", errno)
	switch errno {
	case unix.EBUSY:
		return fmt.Errorf("%w: %v", ErrNested, err)
	case unix.EINVAL:
		return fmt.Errorf("%w: %v (user notification needs Linux 5.0)", ErrNoFilter, err)
	case unix.ENOSYS, unix.EPERM:
		return fmt.Errorf("%w: %v (seccomp is missing in the kernel, or a container's profile forbids it)", ErrNoFilter, err)
	}
	return fmt.Errorf("install filter: %v", err)
}
