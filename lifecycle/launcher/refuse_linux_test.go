package launcher_test

import (
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// refuse makes this process, and all that it starts, live where a system call is EPERM, as pidfd_getfd(2) is under Docker's
// default profile.
func refuse(number uint32) error {
	raw, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 4}, // seccomp_data.nr
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: number, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
	})
	if err != nil {
		return err
	}
	var filter []unix.SockFilter
	for _, in := range raw {
		filter = append(filter, unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K})
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	// For all of the runtime's threads.
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return errno
	}
	return nil
}

// envFewCaps marks a launcher that has been executed anew.
const envFewCaps = "OVERLAP_TEST_FEW_CAPS"

// dockerCaps are the capabilities of root in Docker's containers (moby's DefaultCapabilities), by number.
const dockerCaps = 0xa80425fb

// execFewCaps executes a launcher anew with no other capabilities than those.
func execFewCaps(config string) error {
	runtime.LockOSThread()
	for number := uintptr(0); number <= unix.CAP_LAST_CAP; number++ {
		if dockerCaps&(1<<number) == 0 {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, number, 0, 0, 0); err != nil {
				return os.NewSyscallError("prctl PR_CAPBSET_DROP", err)
			}
		}
	}
	return syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), envLauncher+"="+config, envFewCaps+"=1"))
}
