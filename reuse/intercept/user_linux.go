package intercept

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// changing is held while a thread is another user: what is put back is the process's, and another thread that found it
// changed would leave it so.
var changing sync.Mutex

// asUser calls f, which looks into /proc at thread tid, and where that is refused once more as the thread's user and
// group. A launcher that is root and has no CAP_SYS_PTRACE, as in a container, may not look at a program that stepped
// down before it was executed (gosu, su-exec, setpriv), and its user may (ptrace(2), PTRACE_MODE_FSCREDS). It does not
// help with one that stepped down by itself: that is not dumpable.
func asUser(tid int, f func() error) error {
	err := f()
	if !errors.Is(err, os.ErrPermission) {
		return err
	}
	var st unix.Stat_t
	if unix.Stat("/proc/"+strconv.Itoa(tid), &st) != nil || int(st.Uid) == os.Geteuid() {
		return err
	}
	changing.Lock()
	defer changing.Unlock()
	runtime.LockOSThread() // new threads of the runtime are not made from one that is locked
	defer runtime.UnlockOSThread()
	defer keepProcess()()
	defer fileSystemUser(os.Geteuid(), os.Getegid())
	if !fileSystemUser(int(st.Uid), int(st.Gid)) {
		return err
	}
	return f()
}

// fileSystemUser sets by whose leave this thread reaches files (setfsuid(2)). The user comes last, and first on the way
// back: either takes the capability, or root's own.
func fileSystemUser(uid, gid int) bool {
	unix.SetfsuidRetUid(os.Geteuid())
	unix.SetfsgidRetGid(gid)
	unix.SetfsuidRetUid(uid)
	nowUID, _ := unix.SetfsuidRetUid(-1)
	nowGID, _ := unix.SetfsgidRetGid(-1)
	return nowUID == uid && nowGID == gid
}

// keepProcess returns what puts back what a change of the user takes from the process and the thread (commit_creds in
// kernel/cred.c): that it is dumpable, and the signal at its parent's death.
func keepProcess() (restore func()) {
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	var sig int32
	serr := unix.Prctl(unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&sig)), 0, 0, 0)
	return func() {
		if err == nil && dumpable == 1 {
			unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
		}
		if serr == nil && sig != 0 {
			unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(sig), 0, 0, 0)
		}
	}
}
