package intercept

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// listen handles a listen(2). What can't be seen goes on: it is out of clients' reach by the steering alone.
func (t *Tap) listen(c call) syscall.Errno {
	tid, fd := int(c.n.TID), int(int32(c.n.Args[0]))
	if t.o.Listen == nil || tid == 0 || fd < 0 || !sameNetwork(tid) {
		return goOn
	}
	l := Listen{FD: fd, tap: t}
	var err error
	if l.PID, err = threadGroup(tid); err != nil {
		return goOn
	}
	if t.mode == Make {
		var st unix.Stat_t
		if err := asUser(tid, func() error { return unix.Stat(pathOf(tid, fd), &st) }); err != nil && !errors.Is(err, os.ErrPermission) {
			return goOn
		}
		l.Inode = st.Ino
	} else {
		copied, err := fetch(tid, l.PID, fd)
		if err != nil {
			return goOn
		}
		l.Socket = os.NewFile(uintptr(copied), fmt.Sprintf("socket of process %d", l.PID))
		defer l.Socket.Close()
		var b Bind
		if listening, err := unix.GetsockoptInt(copied, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listening != 0 || !describe(copied, &b) {
			return goOn
		}
		l.Inode = b.Inode
	}
	if !c.valid() {
		return goOn
	}
	return t.verdict(t.o.Listen(l), "preparing a listen failed; it goes on untouched", "pid", l.PID)
}
