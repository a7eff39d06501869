package reuse

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"overlap/reuse/sockdiag"
)

// unixMaxName is what fits into sockaddr_un with the zero byte at its end
// (unix(7)).
const unixMaxName = 107

// unixShortName returns a name for the path that fits into a socket's address:
// through a descriptor of its directory where it is too long. done must be called
// after use.
func unixShortName(path string) (name string, done func(), err error) {
	if len(path) <= unixMaxName {
		return path, func() {}, nil
	}
	fd, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	directory := "/proc/self/fd/" + strconv.Itoa(fd)
	if _, err := os.Stat(directory); err != nil {
		unix.Close(fd)
		return "", nil, fmt.Errorf("the path is longer than %d bytes, which needs /proc: %w", unixMaxName, err)
	}
	return directory + "/" + filepath.Base(path), func() { unix.Close(fd) }, nil
}

// unixListening finds the listener whose file stands at the path, without
// connecting to it. The kernel's numbers for a file are not stat(2)'s on every file
// system, and other network namespaces are not shown, so not found means nothing.
func unixListening(path string) (s Stranger, found bool) {
	var file unix.Stat_t
	if err := unix.Lstat(path, &file); err != nil {
		return Stranger{}, false
	}
	diag, err := sockdiag.Open()
	if err != nil {
		return Stranger{}, false
	}
	defer diag.Close()
	listeners, err := diag.UnixListeners()
	if err != nil {
		return Stranger{}, false
	}
	device := unix.Major(file.Dev)<<20 | unix.Minor(file.Dev)
	i := slices.IndexFunc(listeners, func(l sockdiag.UnixSocket) bool {
		return l.FileInode == uint32(file.Ino) && l.FileDevice == device
	})
	if i < 0 {
		return Stranger{}, false
	}
	s = Stranger{Network: "unix", Inode: listeners[i].Inode, UID: file.Uid}
	if owners, err := sockdiag.Owners(s.Inode); err == nil {
		s = withOwners(s, owners[s.Inode])[0]
	}
	return s, true
}

// unixPeer tells who listens where c is connected to, by SO_PEERCRED. Which of the
// process's sockets it is, is not said: one that is ours, if it has such.
func unixPeer(c *net.UnixConn, _ string, mine func(inode uint64) bool) Stranger {
	s := Stranger{Network: "unix"}
	var cred *unix.Ucred
	err := backlogControl(c, func(fd int) (err error) {
		cred, err = unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		return err
	})
	if err != nil || cred.Pid == 0 {
		return s
	}
	s.PID, s.UID, s.Command = int(cred.Pid), cred.Uid, sockdiag.Command(int(cred.Pid))
	inodes, err := sockdiag.Inodes(s.PID)
	if err != nil {
		return s
	}
	if i := slices.IndexFunc(inodes, mine); i >= 0 {
		s.Inode = inodes[i]
	}
	return s
}

// unixInode is the number of the socket behind c.
func unixInode(c syscall.Conn, _ string) (inode uint64, err error) {
	err = backlogControl(c, func(fd int) (err error) {
		inode, err = unixInodeOf(fd)
		return err
	})
	return inode, err
}

func unixInodeOf(fd int) (uint64, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return 0, fmt.Errorf("stat the socket: %w", err)
	}
	return stat.Ino, nil
}
