package intercept

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of what is kept. A program binds a server's socket right after it has made it. A client's, which
// goes without a bind, gets its port at the first connect(2) or sendto(2), and is let go at the next
// look; until then it outlives the program's close. The looks are firstLook after its making, then twice
// as long after it each time.
const (
	firstLook = time.Millisecond
	keepTime  = 2 * time.Second
	maxKept   = 64
)

// kept are copies of sockets that were made for the program and that are not bound yet, by
// inode: the only way to set an option on them at bind(2) where the program's descriptors
// can't be copied.
type kept struct {
	mu     sync.Mutex
	fds    map[uint64]int
	order  []uint64 // oldest first
	closed bool
}

// put keeps a copy of a socket.
func (k *kept) put(fd int) {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return
	}
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		unix.Close(copied)
		return
	}
	if len(k.order) >= maxKept {
		k.dropLocked(k.order[0])
	}
	if k.fds == nil {
		k.fds = map[uint64]int{}
	}
	k.fds[st.Ino] = copied
	k.order = append(k.order, st.Ino)
	k.lookIn(firstLook, st.Ino, copied, firstLook)
}

// lookIn looks after a time at the copy of a socket that was made age ago by then, and lets go of it where it
// is of no use any more.
func (k *kept) lookIn(wait time.Duration, ino uint64, copied int, age time.Duration) {
	time.AfterFunc(wait, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		switch {
		case k.fds[ino] != copied: // taken, or dropped for a newer one
		case age >= keepTime || bound(copied):
			k.dropLocked(ino)
		default:
			next := min(2*age, keepTime)
			k.lookIn(next-age, ino, copied, next)
		}
	})
}

// bound says whether a socket of the Internet's has a port: bind(2) would refuse it another.
func bound(fd int) bool {
	name, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return name.Port != 0
	case *unix.SockaddrInet6:
		return name.Port != 0
	}
	return false
}

// take returns the copy of what thread tid has as fd, -1 where there is none. It is the
// caller's then.
func (k *kept) take(tid, fd int) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.fds) == 0 {
		return -1
	}
	var st unix.Stat_t
	if asUser(tid, func() error { return unix.Stat(pathOf(tid, fd), &st) }) != nil {
		return -1
	}
	copied, ok := k.fds[st.Ino]
	if !ok {
		return -1
	}
	k.forgetLocked(st.Ino)
	return copied
}

func (k *kept) forgetLocked(ino uint64) {
	delete(k.fds, ino)
	for i, o := range k.order {
		if o == ino {
			k.order = append(k.order[:i], k.order[i+1:]...)
			return
		}
	}
}

func (k *kept) dropLocked(ino uint64) {
	unix.Close(k.fds[ino])
	k.forgetLocked(ino)
}

// close drops all of them.
func (k *kept) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	for len(k.order) > 0 {
		k.dropLocked(k.order[0])
	}
}
