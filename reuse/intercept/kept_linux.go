package intercept

import (
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of what is kept. A program binds a server's socket right after it has made it. One that
// goes without a bind (a client's) outlives the program's close until then.
const (
	keepTime = 2 * time.Second
	maxKept  = 64
)

// kept are copies of sockets that were made for the program and that it has not bound yet, by
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
	time.AfterFunc(keepTime, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.fds[st.Ino] == copied {
			k.dropLocked(st.Ino)
		}
	})
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
	if unix.Stat("/proc/"+strconv.Itoa(tid)+"/fd/"+strconv.Itoa(fd), &st) != nil {
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
