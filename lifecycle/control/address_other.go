//go:build !linux

package control

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

const maxSocketPath = 103

func throughDescriptor(*os.File, string) (string, error) {
	return "", fmt.Errorf("a longer socket path needs Linux's /proc: %w; choose a shorter --state-dir", errors.ErrUnsupported)
}

// peerOf returns who made the connection (LOCAL_PEERCRED, unix(4)). The pid is 0 where
// the system does not tell.
func peerOf(conn *net.UnixConn) (pid, uid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var cred *unix.Xucred
	var failed error
	if err := raw.Control(func(fd uintptr) {
		cred, failed = unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
		if runtime.GOOS == "darwin" && failed == nil {
			const localPeerPID = 2 // LOCAL_PEERPID, sys/un.h
			pid, _ = unix.GetsockoptInt(int(fd), unix.SOL_LOCAL, localPeerPID)
		}
	}); err != nil {
		return 0, 0, err
	}
	if failed != nil {
		return 0, 0, fmt.Errorf("LOCAL_PEERCRED: %w", failed)
	}
	return pid, int(cred.Uid), nil
}
