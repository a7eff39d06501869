package reuse

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func endResting(fd int, quiet time.Duration) (bool, error) {
	const established = 1 // TCP_ESTABLISHED, linux/tcp_states.h
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return false, os.NewSyscallError("getsockopt TCP_INFO", err)
	}
	if info.State != established || info.Unacked > 0 || info.Notsent_bytes > 0 {
		return false, nil
	}
	if info.Bytes_received > 0 && info.Bytes_sent == 0 {
		return false, nil // never answered (both counted since Linux 4.19)
	}
	// Both are milliseconds ago, and of one that neither sent nor received anything as old as it.
	sent, received := info.Last_data_sent, info.Last_data_recv
	if received < sent || time.Duration(sent)*time.Millisecond < quiet {
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
