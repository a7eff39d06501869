package bench

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// closeAndWait closes the server's side and returns when the client's kernel has
// acknowledged that: a client that looks now sees it.
func closeAndWait(t *testing.T, conn net.Conn) {
	tcp := conn.(*net.TCPConn)
	tcp.CloseWrite()
	raw, err := tcp.SyscallConn()
	if err != nil {
		t.Error(err)
		return
	}
	const finWait2 = 5 // TCP_FIN_WAIT2 of include/net/tcp_states.h
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Microsecond) {
		var info *unix.TCPInfo
		raw.Control(func(fd uintptr) {
			info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		})
		if err != nil || info.State == finWait2 {
			break
		}
	}
	tcp.Close()
}
