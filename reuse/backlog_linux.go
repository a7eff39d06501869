package reuse

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"overlap/reuse/sockdiag"
)

// FileQueue returns the queue of a listener or packet socket of this process: a
// *net.TCPListener, *net.UDPConn, *net.UnixListener or what wraps one. It asks
// TCP_INFO of a TCP listener (tcpi_unacked is its accept queue's length: tcp_get_info
// in the kernel's net/ipv4/tcp.c), SO_MEMINFO (Linux 4.12) of a datagram socket,
// and sock_diag of a unix listener. A listener that is closed is not known any
// more.
func FileQueue(c syscall.Conn) Queue { return fileQueue{c} }

type fileQueue struct{ conn syscall.Conn }

func (q fileQueue) Len() (n int, known bool, err error) {
	var unixInode uint64
	err = backlogControl(q.conn, func(fd int) error {
		kind, err := kindOf(fd)
		if err != nil {
			return err
		}
		switch kind {
		case kindUnix:
			unixInode, err = unixInodeOf(fd)
		case kindStream:
			n, err = acceptQueueLen(fd)
		default:
			n, err = receiveQueueLen(fd)
		}
		return err
	})
	switch {
	case errors.Is(err, net.ErrClosed):
		return 0, false, nil
	case err != nil:
		return 0, false, noProof(err)
	case unixInode == 0:
		return n, true, nil
	}
	diag, err := sockdiag.Open()
	if err != nil {
		return 0, false, noProof(err)
	}
	defer diag.Close()
	return unixQueueLen(diag, unixInode)
}

func (q fileQueue) handshakes() bool {
	kind := kindStream
	backlogControl(q.conn, func(fd int) (err error) {
		kind, err = kindOf(fd)
		return err
	})
	return kind == kindStream
}

func (q fileQueue) listener() (ino uint64, families []uint8, err error) {
	err = backlogControl(q.conn, func(fd int) error {
		domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		if err != nil {
			return fmt.Errorf("get SO_DOMAIN: %w", err)
		}
		families = []uint8{uint8(domain)}
		protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
		if err != nil {
			return fmt.Errorf("get SO_PROTOCOL: %w", err)
		}
		if protocol == unix.IPPROTO_MPTCP {
			return errors.New("an MPTCP listener has more references of its own")
		}
		ino, err = inode(fd)
		return err
	})
	return ino, families, err
}

type socketKind int

const (
	kindStream   socketKind = iota // a TCP listener
	kindDatagram                   // UDP, and unix datagram sockets
	kindUnix                       // a unix listener
)

func kindOf(fd int) (socketKind, error) {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return 0, fmt.Errorf("get SO_DOMAIN: %w", err)
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return 0, fmt.Errorf("get SO_TYPE: %w", err)
	}
	if kind == unix.SOCK_DGRAM {
		return kindDatagram, nil
	}
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return 0, fmt.Errorf("get SO_ACCEPTCONN: %w", err)
	}
	if listens == 0 {
		return 0, errors.New("the socket does not listen")
	}
	if domain == unix.AF_UNIX {
		return kindUnix, nil
	}
	return kindStream, nil
}

func acceptQueueLen(fd int) (int, error) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, fmt.Errorf("get TCP_INFO: %w", err)
	}
	return int(info.Unacked), nil
}

// receiveQueueLen is the memory of unread datagrams: FIONREAD says 0 where the
// next one is empty.
func receiveQueueLen(fd int) (int, error) {
	var info [unix.SK_MEMINFO_VARS]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, fmt.Errorf("get SO_MEMINFO: %w", errno)
	}
	return int(info[unix.SK_MEMINFO_RMEM_ALLOC]), nil
}

// unixQueueLen asks for one unix listener by its inode, which needs no dump and
// so misses nothing.
func unixQueueLen(diag *sockdiag.Conn, inode uint64) (int, bool, error) {
	s, err := diag.Unix(inode)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return 0, false, nil
	case err != nil:
		return 0, false, noProof(err)
	}
	return int(s.RQueue), true, nil
}

func backlogControl(c syscall.Conn, do func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = do(int(fd)) }); err != nil {
		return err
	}
	return failed
}
