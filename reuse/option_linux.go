package reuse

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// hiddenIndex is an interface index that does not exist. A listener bound to it is skipped by
// lookups (compute_score in net/ipv4/inet_hashtables.c), while what it holds still completes.
const hiddenIndex = 0x7ffffffe

// gate lets only packets with at least the given hop limit reach a socket: IP_MINTTL (ip(7))
// and IPV6_MINHOPCOUNT for TCP, a socket filter (socket(7)) for UDP, where the kernel does not
// look at the former. What is dropped is counted in the socket's drops.
func gate(fd int, a Address, hops int) error {
	if a.Network == "udp" {
		raw, err := assemble(gateFilter(uint32(hops)))
		if err != nil {
			return err
		}
		return os.NewSyscallError("setsockopt SO_ATTACH_FILTER", setProgram(fd, unix.SO_ATTACH_FILTER, raw))
	}
	if !a.Is4() {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MINHOPCOUNT, hops); err != nil {
			return os.NewSyscallError("setsockopt IPV6_MINHOPCOUNT", err)
		}
		if a.V6Only {
			return nil
		}
	}
	return os.NewSyscallError("setsockopt IP_MINTTL", unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MINTTL, hops))
}

// closeGate lets only the probe through.
func closeGate(fd int, a Address) error { return gate(fd, a, probeHops) }

// openGate lets everybody through but locator packets.
func openGate(fd int, a Address) error { return gate(fd, a, locatorHops+1) }

// attach sets the program of the group that fd is a member of (SO_ATTACH_REUSEPORT_CBPF,
// socket(7)); it takes effect at once, for the whole group, and needs no capability. A kernel
// without the fix for CVE-2026-52910 frees the program that was there with no grace period: a CPU that is
// stopped while it runs that one crashes.
func attach(fd int, p []bpf.Instruction) error {
	raw, err := assemble(p)
	if err != nil {
		return err
	}
	if err := setProgram(fd, unix.SO_ATTACH_REUSEPORT_CBPF, raw); err != nil {
		return fmt.Errorf("attach steering program: %w", os.NewSyscallError("setsockopt", err))
	}
	return nil
}

func setProgram(fd, option int, raw []bpf.RawInstruction) error {
	filters := unsafe.Slice((*unix.SockFilter)(unsafe.Pointer(unsafe.SliceData(raw))), len(raw))
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, option, &unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]})
}

// hide takes a socket out of lookups. Undoing it needs a privilege.
func hide(fd int) error {
	return os.NewSyscallError("setsockopt SO_BINDTOIFINDEX", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, hiddenIndex))
}

// inode is the number by which the kernel lists a socket.
func inode(fd int) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	return st.Ino, nil
}

// Share makes a socket that is not bound yet a member of the group it will be bound to, and
// closes the gate: SO_REUSEPORT, and for TCP SO_REUSEADDR. For the launcher, which gets the
// sockets of programs that never asked.
func Share(fd int, a Address) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return os.NewSyscallError("setsockopt SO_REUSEPORT", err)
	}
	if a.Network == "tcp" {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return os.NewSyscallError("setsockopt SO_REUSEADDR", err)
		}
	}
	if !steering {
		return nil // nobody would open it
	}
	return closeGate(fd, a)
}

// ShareOpen makes a socket share its port and leaves its gate open: for one that is not known to
// become a listener, or that serves already. ipv4 is the socket's family.
func ShareOpen(fd int, ipv4 bool) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return os.NewSyscallError("setsockopt SO_REUSEPORT", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return os.NewSyscallError("setsockopt SO_REUSEADDR", err)
	}
	if !ipv4 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MINHOPCOUNT, locatorHops+1); err != nil {
			return os.NewSyscallError("setsockopt IPV6_MINHOPCOUNT", err)
		}
	}
	return os.NewSyscallError("setsockopt IP_MINTTL", unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MINTTL, locatorHops+1))
}

// ShareUngated is [Share] for a socket that can't be reached again, to open its gate.
func ShareUngated(fd int, a Address) error {
	if a.Network != "udp" {
		return ShareOpen(fd, a.Is4())
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return os.NewSyscallError("setsockopt SO_REUSEPORT", err)
	}
	if !steering {
		return nil
	}
	return openGate(fd, a)
}

// Unshare undoes [ShareOpen] and [ShareUngated] on a socket that is alone at its port, but for SO_REUSEADDR.
func Unshare(fd int, a Address) error {
	err := UnshareConnected(fd)
	if a.Network == "udp" {
		return errors.Join(err, os.NewSyscallError("setsockopt SO_DETACH_FILTER", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)))
	}
	return errors.Join(err, gate(fd, a, 0))
}

// UnshareConnected turns SO_REUSEPORT off.
func UnshareConnected(fd int) error {
	return os.NewSyscallError("setsockopt SO_REUSEPORT", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 0))
}

// Migrates reports whether net.ipv4.tcp_migrate_req is on in this network namespace: then the
// kernel moves what a closing listener holds to another member of its group, by hash.
func Migrates() bool {
	b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_migrate_req")
	return err == nil && len(b) > 0 && b[0] == '1'
}

// Hide takes a listener out of lookups; what it holds still completes. Undoing it needs a
// privilege.
func Hide(fd int) error { return hide(fd) }

// TryBind reports whether a socket that shares its port can be bound to the address now.
func TryBind(a Address) error {
	family := unix.AF_INET6
	if a.Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := Share(fd, a); err != nil {
		return err
	}
	if family == unix.AF_INET6 && !a.V6Only {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return os.NewSyscallError("setsockopt IPV6_V6ONLY", err)
		}
	}
	sa, err := sockaddr(a)
	if err != nil {
		return err
	}
	return os.NewSyscallError("bind", unix.Bind(fd, sa))
}

// newPlaceholder opens a socket in the group of an address that answers nobody. uid is the
// user its sockets must have; -1: the process's own.
func newPlaceholder(a Address, uid int) (int, error) {
	family, typ := unix.AF_INET6, unix.SOCK_STREAM
	if a.Is4() {
		family = unix.AF_INET
	}
	if a.Network == "udp" {
		typ = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := bindPlaceholder(fd, a, uid); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func bindPlaceholder(fd int, a Address, uid int) error {
	if uid >= 0 && uid != os.Geteuid() {
		if err := unix.Fchown(fd, uid, -1); err != nil {
			return os.NewSyscallError("fchown", err)
		}
	}
	for _, o := range []int{unix.SO_REUSEPORT, unix.SO_REUSEADDR} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, o, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	if !a.Is4() {
		only := 0
		if a.V6Only {
			only = 1
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only); err != nil {
			return os.NewSyscallError("setsockopt IPV6_V6ONLY", err)
		}
	}
	if err := closeGate(fd, a); err != nil {
		return err
	}
	sa, err := sockaddr(a)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, sa); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if a.Network == "udp" {
		return nil
	}
	return os.NewSyscallError("listen", unix.Listen(fd, 1))
}

func sockaddr(a Address) (unix.Sockaddr, error) {
	ip, port := a.AddrPort.Addr(), int(a.AddrPort.Port())
	if ip.Is4() {
		return &unix.SockaddrInet4{Port: port, Addr: ip.As4()}, nil
	}
	zone, err := zoneIndex(ip.Zone())
	return &unix.SockaddrInet6{Port: port, Addr: ip.As16(), ZoneId: zone}, err
}

func closeFD(fd int) { unix.Close(fd) }
