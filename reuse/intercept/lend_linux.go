package intercept

import (
	"maps"
	"net/netip"
	"os"
	"syscall"
	"time"
)

// lending is a copy of the socket of a bind in Make mode, which the program's thread gives when the callback asks for it.
type lending struct {
	call    call
	fd      int
	began   bool // the call is answered, and comes once more
	file    *os.File
	release func() // the thread goes on
	err     error
}

// socket returns the copy. All that ask get the same.
func (l *lending) socket() (*os.File, error) {
	if l.file != nil || l.err != nil {
		return l.file, l.err
	}
	var copied int
	if copied, l.began, l.release, l.err = l.call.borrow(l.fd); l.err == nil {
		l.file = os.NewFile(uintptr(copied), "socket of the program")
	}
	return l.file, l.err
}

func (l *lending) close() {
	if l.file != nil {
		l.file.Close()
		l.release()
	}
}

// again are the binds that come once more, by thread, with what they are answered then.
type again map[uint32]pendingAnswer

type pendingAnswer struct {
	inode   uint64
	address netip.AddrPort
	verdict syscall.Errno
	at      time.Time
}

// A call comes within a moment, but where a handler of a signal leaves it out (longjmp), or its thread ends.
const (
	againTime = 10 * time.Second
	manyAgain = 64 // more than this are looked through for such
)

// put keeps all that may come yet: as many threads as there are can wait behind one another, and one whose answer were forgotten
// would be asked for its socket again, and the next, without end.
func (a *again) put(tid uint32, b Bind, verdict syscall.Errno) {
	if *a == nil {
		*a = again{}
	}
	if len(*a) >= manyAgain {
		maps.DeleteFunc(*a, func(_ uint32, p pendingAnswer) bool { return time.Since(p.at) >= againTime })
	}
	(*a)[tid] = pendingAnswer{inode: b.Inode, address: b.Addr, verdict: verdict, at: time.Now()}
}

// take returns the answer to a bind that has come once more. The socket must be the same: another one, after the call was left
// out, has the same descriptor as a rule.
func (a *again) take(tid uint32, b Bind) (verdict syscall.Errno, ok bool) {
	p, ok := (*a)[tid]
	delete(*a, tid)
	return p.verdict, ok && p.inode == b.Inode && p.address == b.Addr && time.Since(p.at) < againTime
}
