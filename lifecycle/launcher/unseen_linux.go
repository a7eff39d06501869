package launcher

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"overlap/reuse"
	"overlap/reuse/intercept"
	"overlap/reuse/sockdiag"
)

// A program that becomes another user by itself before it binds is not dumpable (prctl(2), PR_SET_DUMPABLE): without
// CAP_SYS_PTRACE the launcher may read neither the address of a bind nor what a descriptor of the program means. But
// where it made the program's sockets it knows their inodes, and when one is about to listen it is bound, and the kernel
// shows all that are (Linux 6.8). So what else is done at the bind is done then.

// unseen is called before a socket listens that the launcher may not look at, while the program waits.
func (s *sockets) unseen(l intercept.Listen) error {
	diag, err := sockdiag.Open()
	if err != nil {
		return err
	}
	defer diag.Close()
	bound, err := diag.Bound()
	if err != nil {
		return err
	}
	for _, d := range bound {
		if !l.Made(d.Inode) {
			continue
		}
		if !s.isBound(d.Inode) {
			if !s.meant(d.Local.Port()) {
				s.g.log.Info("a port among those that the kernel gives is left alone, as the launcher may not look at the program; --listen declares it", "address", d.Local)
				continue
			}
			if err := s.bind(boundTo(d, l.PID)); err != nil {
				return err
			}
		}
		s.comes(d.Inode, l.PID, -1)
	}
	return nil
}

// boundTo is the bind that a socket has behind it. Whether it asked for SO_REUSEPORT is not known: it may have it.
func boundTo(d sockdiag.Socket, pid int) intercept.Bind {
	b := intercept.Bind{PID: pid, FD: -1, Network: "tcp", Addr: d.Local, Family: int(d.Family), V6Only: d.V6Only,
		Device: int(d.Interface), Shares: true, Inode: d.Inode, UID: int(d.UID)}
	if ip := d.Local.Addr(); ip.Is6() && !ip.Is4In6() && ip.IsLinkLocalUnicast() {
		b.Addr = netip.AddrPortFrom(ip.WithZone(strconv.Itoa(b.Device)), d.Local.Port())
	}
	return b
}

// isBound reports whether a bind of the socket was seen.
func (s *sockets) isBound(ino uint64) bool {
	s.mu.Lock()
	_, pending := s.pending[ino]
	_, silent := s.silent[ino]
	s.mu.Unlock()
	return pending || silent || s.known(ino)
}

// meant reports whether a port was surely named in a bind that nobody saw: the kernel gives none such for port 0, or it
// is declared, or the predecessor's.
func (s *sockets) meant(port uint16) bool {
	low, high := uint16(32768), uint16(60999) // the kernel's default
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		fmt.Sscan(string(text), &low, &high)
	}
	return port < low || port > high ||
		slices.ContainsFunc(s.wanted(), func(a reuse.Address) bool { return a.Network == "tcp" && a.AddrPort.Port() == port })
}
