package httpdrain

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// unread tells whether the kernel holds bytes of the connection that nobody has read, by
// peeking without waiting. A connection that is at its end, broken, or no socket has none.
func unread(nc net.Conn) bool {
	return control(nc, func(fd int) bool {
		var b [1]byte
		n, _, err := unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return err == nil && n > 0
	})
}

// control calls f with the connection's descriptor and returns its answer, false where
// there is none.
func control(nc net.Conn, f func(fd int) bool) bool {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	answer := false
	if err := rc.Control(func(fd uintptr) { answer = f(int(fd)) }); err != nil {
		return false
	}
	return answer
}
