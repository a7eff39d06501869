package reuse

import (
	"os"
	"time"

	"golang.org/x/sys/unix"

	"overlap/reuse/sockdiag"
)

func endResting(fd int, quiet, unused time.Duration) (bool, error) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return false, os.NewSyscallError("getsockopt TCP_INFO", err)
	}
	if info.State != sockdiag.StateEstablished || info.Unacked > 0 || info.Notsent_bytes > 0 {
		return false, nil
	}
	if info.Bytes_received > 0 && info.Bytes_sent == 0 {
		return false, nil // never answered (both counted since Linux 4.19)
	}
	// All are milliseconds ago, and of one that neither sent nor received anything as old as it. A client far away
	// says first that it has the answer, and sends its next request a moment later.
	sent, received, acknowledged := since(info.Last_data_sent), since(info.Last_data_recv), since(info.Last_ack_recv)
	switch {
	case info.Bytes_received == 0:
		if received < unused {
			return false, nil
		}
	case received < sent:
		return false, nil
	}
	if min(sent, acknowledged) < quiet {
		return false, nil
	}
	unread, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	if err != nil {
		return false, os.NewSyscallError("ioctl SIOCINQ", err)
	}
	if unread > 0 {
		return false, nil
	}
	if err := unix.Shutdown(fd, unix.SHUT_RD); err != nil {
		return false, os.NewSyscallError("shutdown", err)
	}
	return true, nil
}

// since is a time of TCP_INFO.
func since(ms uint32) time.Duration { return time.Duration(ms) * time.Millisecond }

func openConnection(fd int) (bool, uint16, error) {
	name, err := unix.Getsockname(fd)
	if err != nil {
		return false, 0, os.NewSyscallError("getsockname", err)
	}
	port := 0
	switch n := name.(type) {
	case *unix.SockaddrInet4:
		port = n.Port
	case *unix.SockaddrInet6:
		port = n.Port
	default:
		return false, 0, nil
	}
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return false, 0, os.NewSyscallError("getsockopt TCP_INFO", err) // not TCP
	}
	const open = 1<<sockdiag.StateEstablished | 1<<sockdiag.StateFinWait1 | 1<<sockdiag.StateFinWait2 |
		1<<sockdiag.StateCloseWait | 1<<sockdiag.StateLastAck | 1<<sockdiag.StateClosing
	return 1<<info.State&open != 0, uint16(port), nil
}
