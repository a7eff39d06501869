package control

import (
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const maxSocketPath = 107

func throughDescriptor(dir *os.File, name string) (string, error) {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + name, nil
}

// peerOf returns who made the connection, or, for a connection made from here, who
// listens (SO_PEERCRED, unix(7)). The pid is as this process's pid namespace counts,
// 0 where it has no number there.
func peerOf(conn *net.UnixConn) (pid, uid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var cred *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) {
		cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, 0, err
	}
	if failed != nil {
		return 0, 0, fmt.Errorf("SO_PEERCRED: %w", failed)
	}
	return int(cred.Pid), int(cred.Uid), nil
}
