package intercept

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Tap is the launcher's end of a program that was started with Start. Its
// methods may be called from any goroutine.
type Tap struct {
	o        Options
	log      *slog.Logger
	mode     Mode
	noNewPrv bool
	listener *os.File // nil without a filter
	watch    *os.File // of newWatch, where there is a listener
	done     chan struct{}
	closing  atomic.Bool
	once     sync.Once // closes done where there is no filter

	// Of the goroutine that serves:
	set     recent[settings] // in Make mode
	steered recent[bool]     // sockets of which Bind.Steered spoke
	made    recent[bool]     // in Make mode, stream sockets
	left    sync.Once        // says that an attempt to steer had no effect
	again   again            // of Make mode: binds that come once more
}

// newTap takes over listener and watch and begins to answer.
func newTap(listener, watch *os.File, mode Mode, noNewPrivs bool, o Options) *Tap {
	t := &Tap{o: o, log: o.logger(), mode: mode, noNewPrv: noNewPrivs, listener: listener, watch: watch, done: make(chan struct{})}
	if listener != nil {
		go t.serve()
	}
	return t
}

// NoNewPrivs says whether no_new_privs had to be set for the filter: what the
// program executes then gains nothing from setuid bits and file capabilities.
func (t *Tap) NoNewPrivs() bool { return t.noNewPrv }

// Mode returns the mode in force: Fetch, Make or Off.
func (t *Tap) Mode() Mode { return t.mode }

// Done is closed when no process is under the filter any more (before Linux
// 6.11: and all have been waited for), and by Close. Without a filter nothing
// is known of the processes: it is closed by Close only.
func (t *Tap) Done() <-chan struct{} { return t.done }

// Close ends the interception and returns when no callback runs any more; it
// must not be called from one. It does not take the filter off the program,
// which no call can: from now on each intercepted call fails with ENOSYS.
// So it is for a program that has ended. Close always returns nil, and can be
// called more than once.
func (t *Tap) Close() error {
	if t.listener == nil {
		t.once.Do(func() { close(t.done) })
		return nil
	}
	t.closing.Store(true)
	t.listener.Close() // a second time it is os.ErrClosed
	t.watch.Close()
	<-t.done
	return nil
}

// struct seccomp_notif, seccomp_notif_resp and seccomp_notif_addfd of
// linux/seccomp.h.
type (
	notification struct {
		ID     uint64
		TID    uint32
		Flags  uint32
		Number int32
		Arch   uint32
		IP     uint64
		Args   [6]uint64
	}
	response struct {
		ID    uint64
		Value int64
		Error int32
		Flags uint32
	}
	addition struct {
		ID         uint64
		Flags      uint32
		Source     uint32
		New        uint32
		NewFDFlags uint32
	}
)

func ioctl(fd, request uintptr, arg unsafe.Pointer) (int, syscall.Errno) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg))
		if errno != unix.EINTR {
			return int(r), errno
		}
	}
}

// What a look at the listener can find.
type event int

const (
	nothing event = iota
	notified
	gone   // no process is left under the filter
	broken // the kernel answers what it never should
)

// newWatch returns a descriptor for the runtime's poller that is readable when the listener has something to tell.
//
// The listener itself is none: a signal to the thread that polls it, while the program has the filter's lock, is
// EPOLLERR (seccomp_notify_poll in kernel/seccomp.c), which is over in a moment. But the poller takes a descriptor with that
// alone for one that can't be waited for, and fails from then on. An epoll instance is readable with it, no more.
func newWatch(listener int) (int, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("epoll_create1", err)
	}
	if err = unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, listener, &unix.EpollEvent{Events: unix.EPOLLIN}); err != nil {
		err = os.NewSyscallError("epoll_ctl", err)
	} else {
		// Non-blocking is what makes os.NewFile hand it to the poller.
		err = os.NewSyscallError("fcntl", unix.SetNonblock(fd, true))
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// receive looks at the listener without blocking. The ioctl itself would block,
// but not when poll(2) says that a notification is there: at worst its process
// was killed in between, which is ENOENT.
func receive(fd uintptr, n *notification) (event, error) {
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, 0); err == unix.EINTR {
			continue
		} else if err != nil {
			return broken, os.NewSyscallError("poll", err)
		}
		switch revents := p[0].Revents; {
		case revents&unix.POLLIN != 0:
		case revents&unix.POLLHUP != 0:
			return gone, nil
		case revents == 0:
			return nothing, nil
		case revents&unix.POLLNVAL != 0:
			return broken, os.NewSyscallError("poll", unix.EBADF)
		default:
			continue // POLLERR is a signal in the midst of it: see newWatch
		}
		*n = notification{} // the kernel insists
		switch _, errno := ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(n)); errno {
		case 0:
			return notified, nil
		case unix.ENOENT:
		case unix.ENOTCONN:
			return gone, nil
		default:
			return broken, os.NewSyscallError("ioctl(SECCOMP_IOCTL_NOTIF_RECV)", errno)
		}
	}
}

// serve answers the notifications, one after the other. Between them it waits
// in the runtime's poller: no thread, no wake-up. Going by edges is enough, as
// each notification makes one, and receive looks before each wait.
func (t *Tap) serve() {
	defer close(t.done)
	defer t.listener.Close()
	defer t.watch.Close()
	raw, err := t.listener.SyscallConn()
	if err != nil {
		return // closed already
	}
	ready, err := t.watch.SyscallConn()
	if err != nil {
		return
	}
	for {
		var n notification
		var found event
		var failure error
		err := ready.Read(func(uintptr) bool {
			if err := raw.Control(func(fd uintptr) { found, failure = receive(fd, &n) }); err != nil {
				found = gone // closed
			}
			return found != nothing
		})
		switch {
		case t.closing.Load(), err == nil && found == gone:
			return
		case err != nil:
			t.log.Error("waiting for the program's binds failed; its later binds will fail", "error", err)
			return
		case found == broken:
			t.log.Error("receiving the program's binds failed; its later binds will fail", "error", failure)
			return
		}
		c := call{tap: t, raw: raw, n: n}
		switch n.Number {
		case unix.SYS_BIND:
			if verdict, answered := t.bind(c); !answered {
				c.answer(verdict)
			}
		case unix.SYS_LISTEN:
			c.answer(t.listen(c))
		case unix.SYS_SOCKET:
			if verdict, answered := t.socket(c); !answered {
				c.answer(verdict)
			}
		case unix.SYS_SETSOCKOPT:
			if t.option(c) {
				c.send(response{ID: c.n.ID}) // 0: it worked
			} else {
				c.answer(goOn)
			}
		default:
			c.answer(goOn)
		}
	}
}

// goOn is the verdict that lets the kernel do the call; any other is the error
// that the program gets.
const goOn = syscall.Errno(0)

// call is a system call of the program that waits for its answer.
type call struct {
	tap *Tap
	raw syscall.RawConn
	n   notification
}

// valid says whether the call still waits: if so, what was learned through its
// thread's number was the thread's.
func (c call) valid() bool {
	id := c.n.ID
	_, errno := c.ioctl(unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&id))
	return errno == 0
}

func (c call) answer(verdict syscall.Errno) {
	r := response{ID: c.n.ID, Error: -int32(verdict)}
	if verdict == goOn {
		r.Flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
	}
	c.send(r)
}

func (c call) send(r response) {
	if _, errno := c.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r)); errno != 0 && errno != unix.ENOENT && errno != unix.EBADF {
		c.tap.log.Error("answering a call of the program failed", "tid", c.n.TID, "error", errno)
	}
}

// ioctl returns EBADF when the listener is closed.
func (c call) ioctl(request uintptr, arg unsafe.Pointer) (r int, errno syscall.Errno) {
	if err := c.raw.Control(func(fd uintptr) { r, errno = ioctl(fd, request, arg) }); err != nil {
		return 0, unix.EBADF
	}
	return r, errno
}

// verdict is what an error of a callback means for the program.
func (t *Tap) verdict(err error, what string, attrs ...any) syscall.Errno {
	var errno syscall.Errno
	switch {
	case err == nil:
		return goOn
	case errors.As(err, &errno) && errno != 0:
		return errno
	}
	t.log.Warn(what, append(attrs, "error", err)...)
	return goOn
}

// sizeofSockaddrStorage is the longest address that the kernel takes.
const sizeofSockaddrStorage = 128

// bind handles a bind(2). answered says that the call comes once more.
func (t *Tap) bind(c call) (verdict syscall.Errno, answered bool) {
	if t.o.Bind == nil {
		return goOn, false
	}
	missed := func(err error) (syscall.Errno, bool) {
		// A thread that is gone is no news.
		if c.valid() {
			level := slog.LevelWarn
			if t.mode == Make && errors.Is(err, os.ErrPermission) {
				level = slog.LevelDebug // of TCP it is seen before it listens: see Listen.Made
			}
			t.log.Log(context.Background(), level, "cannot reach the socket of a bind; it goes on untouched", "tid", c.n.TID, "error", err)
			if t.o.Missed != nil {
				t.o.Missed(err)
			}
		}
		return goOn, false
	}
	tid, fd := int(c.n.TID), int(int32(c.n.Args[0]))
	if tid == 0 {
		return missed(errors.New("the process is not visible from the launcher's PID namespace"))
	}
	if !sameNetwork(tid) {
		return goOn, false // its ports are others
	}
	b := Bind{FD: fd, tap: t}
	length := int(int32(c.n.Args[2]))
	if length < unix.SizeofSockaddrInet4 || length > sizeofSockaddrStorage || fd < 0 {
		return goOn, false // the kernel says EINVAL, EBADF
	}
	raw := make([]byte, min(length, maxSockaddr))
	if err := readMemory(tid, c.n.Args[1], raw); err != nil {
		if errors.Is(err, unix.EFAULT) {
			return goOn, false // as the kernel will say
		}
		return missed(err)
	}
	var ok bool
	if b.Addr, ok = parseSockaddr(raw); !ok {
		return goOn, false
	}
	var err error
	if b.PID, err = threadGroup(tid); err != nil {
		return missed(err)
	}

	l := lending{call: c, fd: fd}
	defer l.close()
	switch {
	case t.mode == Make:
		if ok, err = describeFromOutside(tid, fd, &b); err != nil {
			return missed(err)
		}
		set := t.set.of[b.Inode]
		b.Device, b.Shares = set.device, set.shares
		switch {
		case b.Family != unix.AF_INET6:
		case set.v6only != nil:
			b.V6Only = *set.v6only
		default:
			b.V6Only = madeV6Only()
		}
		if b.Network == "udp" {
			b.lend = &l
		}
	default:
		var copied int
		if copied, err = fetch(tid, b.PID, fd); errors.Is(err, unix.EBADF) {
			return goOn, false
		} else if err != nil {
			return missed(err)
		}
		b.Socket = os.NewFile(uintptr(copied), fmt.Sprintf("socket of process %d", b.PID))
		defer b.Socket.Close()
		ok = describe(copied, &b)
	}
	if !ok || !c.valid() {
		return goOn, false
	}
	if verdict, known := t.again.take(c.n.TID, b); known {
		return verdict, false
	}
	verdict = t.verdict(t.o.Bind(b), "preparing a bind failed; it goes on untouched", "pid", b.PID, "network", b.Network, "address", b.Addr)
	if l.began {
		t.again.put(c.n.TID, b, verdict)
	}
	return verdict, l.began
}

// socket handles a socket(2) of TCP, in Make mode. answered says that the program has
// its socket.
func (t *Tap) socket(c call) (verdict syscall.Errno, answered bool) {
	const flags = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	domain, full, proto := int(int32(c.n.Args[0])), int(int32(c.n.Args[1])), int(int32(c.n.Args[2]))
	if full&^(sockTypeMask|flags) != 0 {
		return goOn, false // the kernel says EINVAL
	}
	if c.n.TID != 0 && !sameNetwork(int(c.n.TID)) {
		return goOn, false
	}
	fd, err := unix.Socket(domain, full|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		// The program's own try tells it why, or works where only the launcher
		// has no descriptor left.
		return goOn, false
	}
	file := os.NewFile(uintptr(fd), "socket of the program")
	defer file.Close()
	if t.o.Made != nil {
		verdict := t.verdict(t.o.Made(file, domain), "preparing a socket failed; the program gets it untouched", "tid", c.n.TID)
		if verdict != goOn {
			return verdict, false
		}
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil {
		t.made.put(st.Ino, true, maxMade)
	}
	return c.give(fd, full&unix.SOCK_CLOEXEC != 0)
}

func (t *Tap) gave(inode uint64) bool { return t.made.of[inode] }

// give puts a copy of fd into the program as the result of its call, in two steps. With SECCOMP_ADDFD_FLAG_SEND it would
// be one (Linux 5.14), but a signal to the launcher in the midst of that takes the descriptor back and leaves the answer: the
// program's socket(2) returns 0 (seccomp_notify_addfd in kernel/seccomp.c). So does a freezer, which no mask of signals keeps
// away. Before Linux 5.19 (WAIT_KILLABLE_RECV) a signal to the program between the steps costs it a descriptor
// that it does not know of.
func (c call) give(fd int, closeOnExec bool) (verdict syscall.Errno, answered bool) {
	a := addition{ID: c.n.ID, Source: uint32(fd)}
	if closeOnExec {
		a.NewFDFlags = unix.O_CLOEXEC
	}
	number, errno := c.ioctl(unix.SECCOMP_IOCTL_NOTIF_ADDFD, unsafe.Pointer(&a))
	switch errno {
	case 0:
		c.send(response{ID: c.n.ID, Value: int64(number)})
		return goOn, true
	case unix.ENOENT, unix.EBADF: // nobody waits for it any more
		return goOn, true
	case unix.EMFILE, unix.ENFILE, unix.ENOMEM:
		return errno, false
	}
	c.tap.log.Warn("putting a socket into the program failed; it makes its own, untouched", "tid", c.n.TID, "error", errno)
	return goOn, false
}
