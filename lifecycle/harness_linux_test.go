package lifecycle_test

import (
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// deferAccept sets TCP_DEFER_ACCEPT: a connection is half-open until the client has sent something.
func deferAccept(ln net.Listener, seconds int) error {
	if seconds == 0 {
		return nil
	}
	sc, ok := ln.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%T has no descriptor", ln)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		inner = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, seconds)
	})
	if err != nil {
		return err
	}
	return inner
}
