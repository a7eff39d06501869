package intercept

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// spare is for the thread that each start ends: where the runtime can't make one that it needs, it ends the
// process, and the program may have taken the last that the user, or the container, may have (RLIMIT_NPROC,
// pids.max). So there must be more than the launcher needs, made before, and only where there is room.
var spare sync.Mutex

const (
	// fewestThreads, and one for each processor, but for many: a launcher was seen to need 11 on two.
	fewestThreads  = 10
	mostProcessors = 8
	// fewestProcessors there are while a command starts: see StartCommand.
	fewestProcessors = 2
	// spareThreads are made at a time.
	spareThreads = 4
	// roomThreads is what the runtime may make more meanwhile.
	roomThreads = 4
)

// refillAfter is how long after a start the next one's threads are made: not beside a program that starts.
const refillAfter = time.Second

// refills is the timer of the next refill, which each start sets anew.
var refills = sync.OnceValue(func() *time.Timer { return time.AfterFunc(refillAfter, refill) })

// refill makes the threads of the next start ahead of it, where there is room.
func refill() {
	// Whoever has the lock, a start or another refill, sees to it. To wait would keep a thread, of
	// which there may be few.
	if !spare.TryLock() {
		return
	}
	defer spare.Unlock()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	spendThreadLocked()
}

// spendThread must be called, from a goroutine that is locked to its thread, before a thread is ended. It
// fails where no other takes its place.
func spendThread() error {
	spare.Lock()
	defer spare.Unlock()
	return spendThreadLocked()
}

func spendThreadLocked() error {
	have := threads()
	if have == 0 {
		return nil // without /proc it can't be seen
	}
	fewest := fewestThreads + min(max(runtime.GOMAXPROCS(0), fewestProcessors), mostProcessors)
	if have > fewest {
		return nil
	}
	missing := fewest + spareThreads - have
	if err := room(missing + roomThreads); err != nil {
		return fmt.Errorf("make room for threads: %v%s", os.NewSyscallError("clone", err), atLimit(err))
	}
	makeThreads(have + missing)
	return nil
}

// makeThreads has the runtime make threads until it has n, by keeping busy those that there are. They are
// idle then, and it never ends one.
func makeThreads(n int) {
	release := make(chan struct{})
	defer close(release)
	for tries := 0; tries < 1000 && threads() < n; tries++ {
		held := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			close(held)
			<-release
		}()
		<-held
	}
}

// threads is how many there are in this process, 0 where that can't be seen.
func threads() int {
	dir, err := os.Open("/proc/self/task")
	if err != nil {
		return 0
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	return len(names)
}

// room returns an error where n more threads or processes can't be made. Limits can be set at several
// levels, and not all are seen, so it is tried. The calling goroutine must be locked to its thread.
func room(n int) error {
	var children []int
	defer func() {
		for _, pid := range children {
			unix.Kill(pid, unix.SIGKILL)
		}
		for _, pid := range children {
			for {
				if _, err := unix.Wait4(pid, nil, unix.WALL, nil); err != unix.EINTR {
					break
				}
			}
		}
	}()
	for range n {
		pid, errno := fork()
		if errno != 0 {
			return errno
		}
		children = append(children, pid)
	}
	return nil
}

// fork makes a process that waits to be killed, and dies with this thread. It has no copies of
// descriptors, which would keep sockets open, and gives no SIGCHLD. In it nothing of the runtime works.
//
//go:norace
//go:nosplit
func fork() (int, syscall.Errno) {
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, unix.CLONE_FILES, 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return int(pid), errno
	}
	unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0, 0)
	for {
		unix.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
	}
}
