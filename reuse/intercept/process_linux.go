package intercept

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// readMemory fills b from the memory of thread tid. Containers can forbid
// process_vm_readv(2) and still let /proc be read.
func readMemory(tid int, address uint64, b []byte) error {
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(len(b))
	n, err := unix.ProcessVMReadv(tid, local, []unix.RemoteIovec{{Base: uintptr(address), Len: len(b)}}, 0)
	switch {
	case err == nil && n == len(b):
		return nil
	case err == nil:
		return os.NewSyscallError("process_vm_readv", unix.EFAULT)
	case err == unix.ESRCH || err == unix.EFAULT:
		return os.NewSyscallError("process_vm_readv", err)
	}
	var fd int
	if openErr := asUser(tid, func() (err error) {
		fd, err = unix.Open("/proc/"+strconv.Itoa(tid)+"/mem", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	}); openErr != nil {
		return os.NewSyscallError("process_vm_readv", err)
	}
	defer unix.Close(fd)
	if n, err := unix.Pread(fd, b, int64(address)); err != nil || n != len(b) {
		return fmt.Errorf("read /proc/%d/mem: %w", tid, errors.Join(err, unix.EFAULT))
	}
	return nil
}

// fetch returns a copy of descriptor fd of thread tid in process pid.
func fetch(tid, pid, fd int) (int, error) {
	flags := 0
	if tid != pid {
		flags = unix.PIDFD_THREAD // a thread can have descriptors of its own
	}
	process, err := unix.PidfdOpen(tid, flags)
	if err != nil && tid != pid { // before Linux 6.9
		process, err = unix.PidfdOpen(pid, 0)
	}
	if err != nil {
		return -1, os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(process)
	copied, err := unix.PidfdGetfd(process, fd, 0)
	if err != nil {
		return -1, os.NewSyscallError("pidfd_getfd", err)
	}
	return copied, nil
}

// threadGroup returns the process that thread tid belongs to.
func threadGroup(tid int) (int, error) {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/status")
	if err != nil {
		// Without a /proc the leader can still be told from other threads.
		fd, perr := unix.PidfdOpen(tid, 0)
		if perr != nil {
			return 0, err
		}
		unix.Close(fd)
		return tid, nil
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "Tgid:"); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, fmt.Errorf("read /proc/%d/status: no Tgid", tid)
}

// maxSockaddr is as much as is looked at of an address: struct sockaddr_in6.
const maxSockaddr = unix.SizeofSockaddrInet6

// parseSockaddr reads the address of a bind: ok is false where it is not one of
// IPv4 or IPv6 with a port, and the kernel is to say what it thinks of it.
// An address without a family and all zero is IPv4's for the kernel
// (net/ipv4/af_inet.c, __inet_bind).
func parseSockaddr(b []byte) (addr netip.AddrPort, ok bool) {
	const shortInet6 = 24 // RFC 2133: without the scope
	if len(b) < unix.SizeofSockaddrInet4 {
		return addr, false
	}
	port := binary.BigEndian.Uint16(b[2:])
	var ip netip.Addr
	switch family := binary.NativeEndian.Uint16(b); {
	case family == unix.AF_INET, family == unix.AF_UNSPEC && bytes.Equal(b[4:8], make([]byte, 4)):
		ip = netip.AddrFrom4([4]byte(b[4:8]))
	case family == unix.AF_INET6 && len(b) >= shortInet6:
		ip = netip.AddrFrom16([16]byte(b[8:24]))
		if len(b) >= unix.SizeofSockaddrInet6 && ip.IsLinkLocalUnicast() && !ip.Is4In6() {
			if scope := binary.NativeEndian.Uint32(b[24:]); scope != 0 {
				ip = ip.WithZone(strconv.FormatUint(uint64(scope), 10))
			}
		}
	default:
		return addr, false
	}
	return netip.AddrPortFrom(ip, port), port != 0
}

// describe fills in what the socket itself says. ok is false where it is
// neither a TCP nor a UDP socket.
func describe(fd int, b *Bind) (ok bool) {
	option := func(level, name int) int {
		v, err := unix.GetsockoptInt(fd, level, name)
		if err != nil {
			return -1
		}
		return v
	}
	b.Family = option(unix.SOL_SOCKET, unix.SO_DOMAIN)
	if b.Family != unix.AF_INET && b.Family != unix.AF_INET6 {
		return false
	}
	switch typ, proto := option(unix.SOL_SOCKET, unix.SO_TYPE), option(unix.SOL_SOCKET, unix.SO_PROTOCOL); {
	case typ == unix.SOCK_STREAM && proto == unix.IPPROTO_TCP:
		b.Network = "tcp"
	case typ == unix.SOCK_DGRAM && proto == unix.IPPROTO_UDP:
		b.Network = "udp"
	default:
		return false
	}
	b.V6Only = b.Family == unix.AF_INET6 && option(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY) == 1
	b.Device = max(0, option(unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX)) // Linux 5.1
	b.Shares = option(unix.SOL_SOCKET, unix.SO_REUSEPORT) == 1
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false
	}
	b.Inode, b.UID = st.Ino, int(st.Uid)
	return true
}

// describeFromOutside does the same with what /proc tells of descriptor fd of
// thread tid, which takes less access than a copy of it, but for the socket's options.
func describeFromOutside(tid, fd int, b *Bind) (ok bool, err error) {
	err = asUser(tid, func() error {
		path := pathOf(tid, fd)
		if b.Network, b.Family, err = protocol(path); err != nil || b.Network == "" {
			return err
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return &os.PathError{Op: "stat", Path: path, Err: err}
		}
		b.Inode, b.UID, ok = st.Ino, int(st.Uid), true
		return nil
	})
	return ok, err
}

func pathOf(tid, fd int) string { return fmt.Sprintf("/proc/%d/fd/%d", tid, fd) }

// protocol returns the network and the family of a descriptor in /proc, or "" where it is neither a TCP nor
// a UDP socket. The kernel names a socket's protocol in an extended attribute (net/socket.c, sockfs_xattr_get).
func protocol(path string) (network string, family int, err error) {
	name := make([]byte, 32)
	n, err := unix.Getxattr(path, "system.sockprotoname", name)
	if err == unix.ENOTSUP || err == unix.ENODATA || err == unix.ENOENT {
		return "", 0, nil // not a socket
	}
	if err != nil {
		return "", 0, &os.PathError{Op: "getxattr", Path: path, Err: err}
	}
	switch string(bytes.TrimRight(name[:n], "\x00")) {
	case "TCP":
		return "tcp", unix.AF_INET, nil
	case "TCPv6":
		return "tcp", unix.AF_INET6, nil
	case "UDP":
		return "udp", unix.AF_INET, nil
	case "UDPv6":
		return "udp", unix.AF_INET6, nil
	}
	return "", 0, nil
}

// sameNetwork says whether thread tid is in this process's network namespace;
// where that may not be known, it says yes.
func sameNetwork(tid int) bool {
	var ours, theirs unix.Stat_t
	if unix.Stat("/proc/thread-self/ns/net", &ours) != nil ||
		unix.Stat("/proc/"+strconv.Itoa(tid)+"/ns/net", &theirs) != nil {
		return true
	}
	return ours.Ino == theirs.Ino
}
