package notify

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// oobSpace has no room for descriptors: the kernel drops those that a sender attached, and none
// that a stranger made, to be slow to close, comes into this process.
var oobSpace = unix.CmsgSpace(unix.SizeofUcred)

// control runs before bind(2): the first message already carries the sender's
// credentials (SO_PASSCRED, unix(7)), and the file is never wider than its mode,
// because Linux makes it with the mode of the socket itself.
func control(mode fs.FileMode) func(_, _ string, raw syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		var err error
		controlErr := raw.Control(func(fd uintptr) {
			if err = unix.Fchmod(int(fd), uint32(mode)); err == nil {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
			}
		})
		if controlErr != nil {
			return controlErr
		}
		return err
	}
}

func credentials(m *Message, c *unix.SocketControlMessage) {
	if cred, err := unix.ParseUnixCredentials(c); err == nil {
		m.Pid, m.UID = int(cred.Pid), int(cred.Uid)
	}
}

// shorten returns a short address for path by way of its directory, which must
// stay open while the address is used.
func shorten(path string) (dir *os.File, address string, err error) {
	fd, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, "", &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	dir = os.NewFile(uintptr(fd), filepath.Dir(path))
	address = fmt.Sprintf("/proc/self/fd/%d/%s", fd, filepath.Base(path))
	if len(address) > maxAddress {
		dir.Close()
		return nil, "", fmt.Errorf("the file's name: %w", syscall.ENAMETOOLONG)
	}
	return dir, address, nil
}

// shortenFor returns the short address as other processes may use it.
func shortenFor(dir *os.File, path string) string {
	return fmt.Sprintf("/proc/%d/fd/%d/%s", os.Getpid(), dir.Fd(), filepath.Base(path))
}
