package httpdrain

import (
	"net"

	"golang.org/x/sys/unix"
)

// received is how many bytes the kernel has received on a TCP connection since it began,
// read or not: tcpi_bytes_received of TCP_INFO (tcp(7), Linux 4.1; a FIN counts as one).
// It is exact where a look at the receive queue is not: bytes that a goroutine has just
// taken from the queue are not in it any more.
func received(nc net.Conn) (int64, bool) {
	if _, ok := nc.(*net.TCPConn); !ok {
		return 0, false
	}
	var n int64
	ok := control(nc, func(fd int) bool {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return false
		}
		n = int64(info.Bytes_received)
		return true
	})
	return n, ok
}
