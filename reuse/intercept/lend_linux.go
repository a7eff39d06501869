package intercept

import (
	"maps"
	"os"
	"syscall"
	"time"
)

// lending is a copy of the socket of a bind in Make mode, which the program's thread gives when the callback asks for it.
type lending struct {
	call  call
	fd    int
	began bool // the call is answered, and comes once more
	file  *os.File
	err   error
}

// socket returns the copy. All that ask get the same.
func (l *lending) socket() (*os.File, error) {
	if l.file != nil || l.err != nil {
		return l.file, l.err
	}
	var copied int
	if copied, l.began, l.err = l.call.borrow(l.fd); l.err == nil {
		l.file = os.NewFile(uintptr(copied), "socket of the program")
	}
	return l.file, l.err
}

func (l *lending) close() {
	if l.file != nil {
		l.file.Close()
	}
}

// again are the calls that come once more, by thread, with what they are answered then.
type again map[uint32]pendingAnswer

type pendingAnswer struct {
	call    notification
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
func (a *again) put(n notification, verdict syscall.Errno) {
	if *a == nil {
		*a = again{}
	}
	if len(*a) >= manyAgain {
		maps.DeleteFunc(*a, func(_ uint32, p pendingAnswer) bool { return time.Since(p.at) >= againTime })
	}
	n.ID, n.Flags = 0, 0
	(*a)[n.TID] = pendingAnswer{call: n, verdict: verdict, at: time.Now()}
}

// take returns the answer to a call that has come once more.
func (a *again) take(n notification) (verdict syscall.Errno, ok bool) {
	p, ok := (*a)[n.TID]
	if !ok {
		return 0, false
	}
	delete(*a, n.TID)
	n.ID, n.Flags = 0, 0
	return p.verdict, p.call == n && time.Since(p.at) < againTime
}
