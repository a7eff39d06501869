package intercept

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the step and Probe's program are called (argv[0]).
const (
	stepName   = "overlap-intercept-step"
	probedName = "overlap-intercept-probed"
)

// exitOwnFailure is the step's exit code when it could not do its part.
const exitOwnFailure = 125

// The conversation of launcher and step, one message each, in this order:
//
//	step      hello    here I am, try whether you reach me
//	launcher  plan     install this filter
//	step      installed, with the notification descriptor
//	launcher  "go"
//	step      nothing: the socket is closed by a successful exec
//	          failed   exec failed
//
// A launcher that dies closes the socket, and the step ends.
type (
	hello struct {
		Magic uintptr // the address of magic in the step's memory
	}
	plan struct {
		Filter      bool
		Bind, Make  bool // what the filter notifies
		ParentDeath bool
		Ignored     []syscall.Signal
	}
	installed struct {
		Op         string // what failed; empty: nothing did
		Errno      syscall.Errno
		NoNewPrivs bool
	}
	failed struct {
		Errno syscall.Errno
	}
)

// magic is what the launcher reads from the step's memory, to learn whether it
// can.
var magic = [8]byte{'o', 'v', 'e', 'r', 'l', 'a', 'p', 1}

// The step's work is done on the main thread: the filter, no_new_privs and the
// parent-death signal are properties of a thread, and the last is kept across
// execve only by the thread that calls it.
func init() {
	if len(os.Args) > 0 && os.Args[0] == stepName {
		runtime.LockOSThread()
	}
}

// Main must be the first thing that main, and a TestMain, calls in a program
// that uses Start or Probe. It returns at once, unless this process is the step
// that Start made: then it becomes the program.
func Main() {
	if len(os.Args) == 0 {
		return
	}
	switch os.Args[0] {
	case stepName:
		os.Exit(step(os.Args[1:]))
	case probedName:
		os.Exit(probed())
	}
}

// step is the process between the launcher and the program. args are the
// number of the control socket, the path to execute and the program's argv.
func step(args []string) int {
	refuse := func() int {
		fmt.Fprintln(os.Stderr, "overlap: error: this is a step of overlap's own, not a command")
		return exitOwnFailure
	}
	if len(args) < 3 {
		return refuse()
	}
	ctl, err := strconv.Atoi(args[0])
	if err != nil {
		return refuse()
	}
	if typ, err := unix.GetsockoptInt(ctl, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || typ != unix.SOCK_SEQPACKET {
		return refuse()
	}
	unix.CloseOnExec(ctl)

	if err := say(ctl, hello{Magic: uintptr(unsafe.Pointer(&magic))}, nil); err != nil {
		return exitOwnFailure
	}
	var p plan
	if err := hear(ctl, &p); err != nil {
		return exitOwnFailure
	}
	var answer installed
	var oob []byte
	if p.ParentDeath {
		// Whoever died before this is found out by waiting for "go" below.
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
			answer.Op, answer.Errno = "prctl(PR_SET_PDEATHSIG)", errnoOf(err)
		}
	}
	listener := -1
	if p.Filter && answer.Op == "" {
		listener, answer = install(p)
		if listener >= 0 {
			oob = unix.UnixRights(listener)
		}
	}
	if err := say(ctl, answer, oob); err != nil || answer.Op != "" {
		return exitOwnFailure
	}
	if listener >= 0 {
		unix.Close(listener)
	}
	var ahead string
	if err := hear(ctl, &ahead); err != nil {
		return exitOwnFailure
	}

	// The runtime has handlers of its own in place of what was ignored.
	if len(p.Ignored) > 0 {
		ignore := []os.Signal{}
		for _, s := range p.Ignored {
			ignore = append(ignore, s)
		}
		signal.Ignore(ignore...)
	}
	if err := closeOnExecFrom(ctl); err != nil {
		say(ctl, failed{Errno: errnoOf(err)}, nil)
		return exitOwnFailure
	}
	err = syscall.Exec(args[1], args[2:], os.Environ())
	say(ctl, failed{Errno: errnoOf(err)}, nil)
	return exitOwnFailure
}

// install puts the filter on this thread.
func install(p plan) (listener int, answer installed) {
	fail := func(op string, err error) (int, installed) {
		return -1, installed{Op: op, Errno: errnoOf(err)}
	}
	filter, err := assemble(p.Bind, p.Make)
	if err != nil {
		return fail("assemble the filter", err)
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// WAIT_KILLABLE_RECV (Linux 5.19): once the launcher has the notification,
	// only a fatal signal interrupts the call. Go programs get a signal every
	// 10 ms, each of which would start it anew.
	flags := uintptr(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
	for {
		fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
		switch {
		case errno == 0:
			runtime.KeepAlive(filter)
			return int(fd), answer
		case errno == unix.EACCES && !answer.NoNewPrivs:
			if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
				return fail("prctl(PR_SET_NO_NEW_PRIVS)", err)
			}
			answer.NoNewPrivs = true
		case errno == unix.EINVAL && flags&unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV != 0:
			flags &^= unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
		default:
			return fail("seccomp(SECCOMP_SET_MODE_FILTER)", errno)
		}
	}
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

// say sends a message.
func say(fd int, message any, oob []byte) error {
	b, err := json.Marshal(message)
	if err != nil {
		return err
	}
	for {
		err := unix.Sendmsg(fd, b, oob, nil, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return err
		}
	}
}

// hear receives a message.
func hear(fd int, message any) error {
	b := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return errors.New("the other side is gone")
		}
		return json.Unmarshal(b[:n], message)
	}
}

// errnoOf returns the error number inside err, EIO where there is none.
func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return unix.EIO
}
