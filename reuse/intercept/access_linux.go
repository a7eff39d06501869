package intercept

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// access is what a launcher may do with a program it starts; nil is that it may.
type access struct {
	memory      error // read its memory
	descriptors error // copy its descriptors
}

// known is the access to programs of the launcher's own user, once it was tried. What decides
// about it stays as it is while a process lives, but for an administrator's hand (Yama's
// setting); then binds go on untouched, with a warning.
var known struct {
	sync.Mutex
	access *access
}

// accessFor finds out what access there will be to cmd's program. That is tried on a child that
// does nothing, once for all programs of the launcher's own user.
func accessFor(cmd *exec.Cmd) (access, error) {
	if a := cmd.SysProcAttr; a != nil && (a.Credential != nil || a.Cloneflags != 0 || len(a.AmbientCaps) > 0) {
		return tryAccess(cmd)
	}
	known.Lock()
	defer known.Unlock()
	if known.access == nil {
		a, err := tryAccess(&exec.Cmd{})
		if err != nil {
			return a, err
		}
		if errors.Is(errors.Join(a.memory, a.descriptors), unix.ESRCH) {
			return a, nil // a signal for the whole process group ended the child, say; that is no answer for good
		}
		known.access = &a
	}
	return *known.access, nil
}

// passing reports whether the access that there is ends when the program becomes another user: this is root without
// CAP_SYS_PTRACE, as in a container whose profile lets pidfd_getfd through (podman's), and the program may (CAP_SETUID).
func passing() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if os.Geteuid() != 0 || unix.Capget(&header, &data[0]) != nil {
		return false
	}
	has := func(number int) bool { return data[number/32].Effective&(1<<(number%32)) != 0 }
	return has(unix.CAP_SETUID) && !has(unix.CAP_SYS_PTRACE)
}

// tryAccess starts such a child with cmd's user and namespaces.
func tryAccess(cmd *exec.Cmd) (access, error) {
	path, err := executable()
	if err != nil {
		return access{}, fmt.Errorf("find the launcher's own executable: %v", err)
	}
	child := &exec.Cmd{Path: path, Args: []string{idleName}}
	if cmd.SysProcAttr != nil {
		attr := *cmd.SysProcAttr
		attr.Chroot = "" // the executable need not be in it
		attr.Setsid, attr.Setpgid, attr.Setctty, attr.Noctty, attr.Foreground = false, false, false, false, false
		attr.PidFD = nil
		child.SysProcAttr = &attr
	}
	input, err := child.StdinPipe() // until its end the child waits
	if err != nil {
		return access{}, err
	}
	defer input.Close()
	if err := StartCommand(child); err != nil {
		return access{}, fmt.Errorf("start overlap's own child: %v", err)
	}
	defer child.Wait()
	defer child.Process.Kill()
	return access{memory: tryMemory(child.Process.Pid), descriptors: tryFetch(child.Process.Pid, 0)}, nil
}

// tryMemory says whether the memory of process pid can be read. The address need not be
// one of its own: whether it may is asked first (process_vm_readv(2), ERRORS).
func tryMemory(pid int) error {
	var b [1]byte
	err := readMemory(pid, uint64(uintptr(unsafe.Pointer(&known))), b[:])
	if errors.Is(err, unix.EFAULT) {
		return nil
	}
	return err
}

// tryFetch says whether descriptors of process pid can be copied.
func tryFetch(pid, fd int) error {
	copied, err := fetch(pid, pid, fd)
	if err != nil {
		return err
	}
	return unix.Close(copied)
}

// executable names the running executable. /proc/self/exe works also where the
// file was replaced or may not be reached by the program's user.
func executable() (string, error) {
	const self = "/proc/self/exe"
	if _, err := os.Stat(self); err == nil {
		return self, nil
	}
	if path, err := os.Executable(); err == nil {
		return path, nil
	}
	return exec.LookPath(os.Args[0])
}
