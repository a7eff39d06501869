package intercept

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// borrow returns a copy of descriptor fd of the thread that waits in c, where pidfd_getfd(2) is refused and ptrace(2)
// is not, as in Docker's containers: the thread gives it by its own hand. The launcher puts one end of a socket pair into
// the program, answers the call so that the kernel starts it anew, stops the thread before it does (PTRACE_INTERRUPT), and
// has it send the descriptor (SCM_RIGHTS) in between. Then the thread is where it was, its registers and
// signal mask as before. When release is called it goes on and makes its call again. Other threads of the program are not stopped.
//
// It does not go on before: until the launcher has taken note of a call, a signal with a handler has it fail with EINTR, which
// bind(2) never does, and while it is busy with the socket it takes no note of the next.
//
// Once it has returned without an error, and where began is true, c is answered, and the same call comes once more.
func (c call) borrow(fd int) (copied int, began bool, release func(), err error) {
	if callInstruction == "" {
		return -1, false, func() {}, fmt.Errorf("no thread can give its socket here: %w", errors.ErrUnsupported)
	}
	lent, over, ended := make(chan int), make(chan struct{}), make(chan struct{})
	go c.onThread(ended, func() (clean bool) {
		began, clean, err = c.trace(fd, func(copied int) {
			lent <- copied
			<-over
		})
		return clean
	})
	select {
	case copied = <-lent:
		return copied, true, func() { close(over); <-ended }, nil
	case <-ended:
		return -1, began, func() {}, err
	}
}

// onThread calls f on a thread to which the kernel's ptrace belongs, and ends the thread where f leaves the program's traced:
// it goes on then by itself (ptrace(2), NOTES: a tracer that ends). It must be called in a goroutine of its own.
func (c call) onThread(done chan<- struct{}, f func() (clean bool)) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() { // the first one never ends
		inner := make(chan struct{})
		go c.onThread(inner, f)
		<-inner
		close(done)
		runtime.UnlockOSThread()
		return
	}
	if f() {
		runtime.UnlockOSThread()
	} else if err := spendThread(); err != nil {
		c.tap.log.Warn("a thread is ended", "error", err)
	}
	close(done)
}

// errNotTraceable is a thread whose call did not come from where it seems to.
var errNotTraceable = errors.New("no call is where the thread made its own")

// trace is borrow on the tracing thread: it calls lend while the program's is stopped. clean says that that is traced no more.
func (c call) trace(fd int, lend func(copied int)) (began, clean bool, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, true, os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	tid := int(c.n.TID)
	if err := seize(tid); err != nil {
		return false, true, err
	}
	a := addition{ID: c.n.ID, Source: uint32(pair[1]), NewFDFlags: unix.O_CLOEXEC}
	end, added := c.ioctl(unix.SECCOMP_IOCTL_NOTIF_ADDFD, unsafe.Pointer(&a))
	if err := unix.PtraceInterrupt(tid); err != nil {
		return false, false, os.NewSyscallError("ptrace(PTRACE_INTERRUPT)", err)
	}
	// Before Linux 5.19 (WAIT_KILLABLE_RECV) a signal may have ended the call: it is answered with that, and asked about anew.
	if began = added != unix.ENOENT && added != unix.ESRCH; began {
		const restartNoIntr = 513 // ERESTARTNOINTR, the kernel's own (include/linux/errno.h): no signal's handler makes EINTR of it
		c.send(response{ID: c.n.ID, Error: -restartNoIntr})
	}
	t := traced{tid: tid}
	switch err = t.stopped(); {
	case added != 0:
		err = os.NewSyscallError("ioctl(SECCOMP_IOCTL_NOTIF_ADDFD)", added)
	case err == nil:
		err = t.give(fd, end, c.n)
	}
	if err == nil {
		var copied int
		if copied, err = receiveDescriptor(pair[0]); err == nil {
			lend(copied)
		}
	}
	if derr := unix.PtraceDetach(tid); derr != nil {
		return began, false, errors.Join(err, os.NewSyscallError("ptrace(PTRACE_DETACH)", derr))
	}
	return began, true, err
}

// seize begins to trace a thread, by the leave of its user where the launcher's own is none: PTRACE_MODE_REALCREDS asks
// for the real user.
func seize(tid int) error {
	try := func() error {
		_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(tid), 0, unix.PTRACE_O_TRACESYSGOOD, 0, 0)
		if errno != 0 {
			return os.NewSyscallError("ptrace(PTRACE_SEIZE)", errno)
		}
		return nil
	}
	err := try()
	var st unix.Stat_t
	if !errors.Is(err, os.ErrPermission) || unix.Stat("/proc/"+strconv.Itoa(tid), &st) != nil || int(st.Uid) == unix.Getuid() || os.Geteuid() != 0 {
		return err
	}
	uid, gid := unix.Getuid(), unix.Getgid()
	const same = ^uintptr(0)
	// Of this thread alone: the C library's, and Go's, are of the process.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(st.Gid), same, same); errno != 0 {
		return err
	}
	defer unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), same, same)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(st.Uid), same, same); errno != 0 {
		return err
	}
	defer unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), same, same)
	return try()
}

func ptrace(request, tid int, address uintptr, data unsafe.Pointer) error {
	if _, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), address, uintptr(data), 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// AwaitEnd waits until a child of this process has ended, and leaves it to be waited for. In Make mode a thread of the program is
// traced for a moment when [Bind.Borrow] is called, and whoever waits for the program then, as cmd.Wait does, would
// be told of that (wait(2), ptrace(2)).
func AwaitEnd(pid int) error {
	const (
		exited = 1 // CLD_EXITED, CLD_KILLED, CLD_DUMPED
		dumped = 3
	)
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return os.NewSyscallError("waitid", err)
		case info.Code >= exited && info.Code <= dumped:
			return nil
		default:
			time.Sleep(longestPause)
		}
	}
}

// traced is a thread that this one traces.
type traced struct{ tid int }

// A thread has stopped in less than a millisecond, but where the machine has no time for it. longestTrace is of pauses, so
// that it does not count what a container is paused for.
const (
	shortestPause = 20 * time.Microsecond
	longestPause  = time.Millisecond
	longestTrace  = 30 * time.Second
)

// next waits until the thread stops, and returns why. No wait(2) is needed for it, and none that others make takes it away.
func (t traced) next() (unix.Siginfo, error) {
	var info unix.Siginfo
	waited := time.Duration(0)
	for pause := shortestPause; ; pause = min(2*pause, longestPause) {
		err := ptrace(unix.PTRACE_GETSIGINFO, t.tid, 0, unsafe.Pointer(&info))
		if err == nil {
			return info, nil
		}
		switch {
		case err != unix.ESRCH:
			return info, os.NewSyscallError("ptrace(PTRACE_GETSIGINFO)", err)
		case t.dead():
			return info, os.NewSyscallError("ptrace", unix.ESRCH)
		case waited > longestTrace:
			return info, errors.New("the thread does not stop")
		}
		time.Sleep(pause)
		waited += pause
	}
}

// dead says whether the thread has ended. One that is traced stays as a zombie.
func (t traced) dead() bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(t.tid) + "/stat")
	if err != nil {
		return unix.Kill(t.tid, 0) == unix.ESRCH
	}
	_, state, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
	return strings.HasPrefix(state, "Z") || strings.HasPrefix(state, "X")
}

// stopped waits for the stop that PTRACE_INTERRUPT asks for, at the end of the call.
func (t traced) stopped() error {
	for {
		info, err := t.next()
		if err != nil || info.Code>>8 == unix.PTRACE_EVENT_STOP {
			return err
		}
		if err := unix.PtraceCont(t.tid, int(info.Signo)); err != nil {
			return os.NewSyscallError("ptrace(PTRACE_CONT)", err)
		}
	}
}

// give has the thread send its descriptor fd by its descriptor end, and close that.
func (t traced) give(fd, end int, n notification) error {
	var saved unix.PtraceRegs
	if err := t.registers(unix.PTRACE_GETREGSET, &saved); err != nil {
		return err
	}
	from := saved
	if rewind(&saved, n) {
		from = saved
	} else { // before a handler: see trace
		from.SetPC(n.IP - uint64(len(callInstruction)))
	}
	code := make([]byte, len(callInstruction))
	if err := readMemory(t.tid, from.PC(), code); err != nil {
		return err
	}
	if string(code) != callInstruction {
		return errNotTraceable
	}
	var mask uint64
	// But for SIGSYS: a filter of the program's own may answer the calls with it (SECCOMP_RET_TRAP), and where it is blocked the
	// kernel takes the program's handler away. toCall drops it.
	all := ^uint64(1 << (unix.SIGSYS - 1))
	if err := ptrace(unix.PTRACE_GETSIGMASK, t.tid, unsafe.Sizeof(mask), unsafe.Pointer(&mask)); err != nil {
		return os.NewSyscallError("ptrace(PTRACE_GETSIGMASK)", err)
	}
	// From here on nobody else can put back what it was: where the launcher dies it would go on with all signals blocked, and
	// take the result of another call for that of its bind.
	if err := unix.PtraceSetOptions(t.tid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_EXITKILL); err != nil {
		return os.NewSyscallError("ptrace(PTRACE_SETOPTIONS)", err)
	}
	if err := ptrace(unix.PTRACE_SETSIGMASK, t.tid, unsafe.Sizeof(all), unsafe.Pointer(&all)); err != nil {
		return os.NewSyscallError("ptrace(PTRACE_SETSIGMASK)", err)
	}
	err := t.send(from, fd, end)
	_, cerr := t.call(from, unix.SYS_CLOSE, uintptr(end))
	return errors.Join(err, cerr,
		os.NewSyscallError("ptrace(PTRACE_SETSIGMASK)", ptrace(unix.PTRACE_SETSIGMASK, t.tid, unsafe.Sizeof(mask), unsafe.Pointer(&mask))),
		t.registers(unix.PTRACE_SETREGSET, &saved),
		os.NewSyscallError("ptrace(PTRACE_SETOPTIONS)", unix.PtraceSetOptions(t.tid, unix.PTRACE_O_TRACESYSGOOD)))
}

// message is what sendmsg(2) reads, in one page.
type message struct {
	header  unix.Msghdr
	part    unix.Iovec
	control unix.Cmsghdr
	fd      [2]int32 // the second fills a word
}

// send has the thread send its descriptor.
func (t traced) send(from unix.PtraceRegs, fd, end int) error {
	size := uintptr(unix.Getpagesize())
	page, err := t.call(from, unix.SYS_MMAP, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uintptr(0), 0)
	if err != nil {
		return err
	}
	var m message
	at := func(offset uintptr) *byte { return (*byte)(unsafe.Add(unsafe.Pointer(nil), page+offset)) }
	m.part = unix.Iovec{Base: at(unsafe.Offsetof(m.fd))}
	m.part.SetLen(1)
	m.header.Iov = (*unix.Iovec)(unsafe.Pointer(at(unsafe.Offsetof(m.part))))
	m.header.SetIovlen(1)
	m.header.Control = at(unsafe.Offsetof(m.control))
	m.header.SetControllen(unix.CmsgSpace(4))
	m.control = unix.Cmsghdr{Level: unix.SOL_SOCKET, Type: unix.SCM_RIGHTS}
	m.control.SetLen(unix.CmsgLen(4))
	m.fd[0] = int32(fd)
	_, err = unix.PtracePokeData(t.tid, page, unsafe.Slice((*byte)(unsafe.Pointer(&m)), unsafe.Sizeof(m)))
	err = os.NewSyscallError("ptrace(PTRACE_POKEDATA)", err)
	if err == nil {
		_, err = t.call(from, unix.SYS_SENDMSG, uintptr(end), page, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
	}
	_, uerr := t.call(from, unix.SYS_MUNMAP, page, size)
	return errors.Join(err, uerr)
}

// call has the thread make a system call, from where its own was made.
func (t traced) call(from unix.PtraceRegs, number uintptr, args ...uintptr) (uintptr, error) {
	r := from
	prepare(&r, number, args)
	if err := t.registers(unix.PTRACE_SETREGSET, &r); err != nil {
		return 0, err
	}
	for range 2 { // it begins, it has ended
		if err := t.toCall(); err != nil {
			return 0, err
		}
	}
	if err := t.registers(unix.PTRACE_GETREGSET, &r); err != nil {
		return 0, err
	}
	result := returned(&r)
	const maxErrno = 4095
	if result > -maxErrno-1 && result < 0 {
		return 0, fmt.Errorf("system call %d for the program: %w", number, syscall.Errno(-result))
	}
	return uintptr(result), nil
}

// toCall has the thread go on to where its next system call begins, or the one that began ends.
func (t traced) toCall() error {
	signal := 0
	for {
		if err := unix.PtraceSyscall(t.tid, signal); err != nil {
			return os.NewSyscallError("ptrace(PTRACE_SYSCALL)", err)
		}
		info, err := t.next()
		if err != nil || info.Signo == int32(unix.SIGTRAP) && info.Code == int32(unix.SIGTRAP)|0x80 {
			return err
		}
		// All other signals wait, but for SIGSTOP, which is lost where it is not handed on. Of the stop that it makes nothing is
		// seen here: the thread is in it again once it is let go.
		signal = 0
		if info.Signo == int32(unix.SIGSTOP) && info.Code>>8 != unix.PTRACE_EVENT_STOP {
			signal = int(unix.SIGSTOP)
		}
	}
}

func (t traced) registers(request int, r *unix.PtraceRegs) error {
	v := unix.Iovec{Base: (*byte)(unsafe.Pointer(r))}
	v.SetLen(int(unsafe.Sizeof(*r)))
	return os.NewSyscallError("ptrace", ptrace(request, t.tid, unix.NT_PRSTATUS, unsafe.Pointer(&v)))
}

// receiveDescriptor takes what was sent.
func receiveDescriptor(from int) (int, error) {
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(from, make([]byte, 1), control, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return -1, fmt.Errorf("recvmsg: %d messages: %w", len(messages), errors.Join(err, unix.EBADF))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("recvmsg: %d descriptors: %w", len(fds), errors.Join(err, unix.EBADF))
	}
	return fds[0], nil
}
