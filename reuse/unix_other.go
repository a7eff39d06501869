//go:build !linux

package reuse

import (
	"fmt"
	"io/fs"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

const unixMaxName = len(unix.RawSockaddrUnix{}.Path) - 1

func unixShortName(path string) (name string, done func(), err error) {
	if len(path) > unixMaxName {
		return "", nil, fmt.Errorf("the path is longer than %d bytes: %w", unixMaxName, unix.ENAMETOOLONG)
	}
	return path, func() {}, nil
}

func unixListening(string) (s Stranger, found bool) { return Stranger{}, false }

// unixPeer knows a listener by its file alone.
func unixPeer(_ *net.UnixConn, path string, _ func(uint64) bool) Stranger {
	inode, _ := unixFileInode(path)
	return Stranger{Network: "unix", Inode: inode}
}

func unixInode(_ syscall.Conn, path string) (uint64, error) { return unixFileInode(path) }

// unixFileInode is the number of the file at a path.
func unixFileInode(path string) (uint64, error) {
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		return 0, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	return uint64(stat.Ino), nil
}
