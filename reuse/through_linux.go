package reuse

import (
	"fmt"
	"net/netip"
	"slices"

	"overlap/reuse/sockdiag"
)

// through says where this machine's packets reach the sockets of an address: a wildcard's are found at any
// address of the machine, unless a socket has that one for itself, which the kernel takes first
// (compute_score in net/ipv4/inet_hashtables.c). there are the sockets of the port and family.
func through(diag *sockdiag.Conn, a Address, there []sockdiag.Socket) (Address, error) {
	ip := a.Local().Addr()
	if !a.AddrPort.Addr().IsUnspecified() || !taken(there, ip) {
		return a, nil
	}
	if !a.Is4() && !ip.Is4() {
		if a.V6Only {
			return a, fmt.Errorf("reach the sockets of %s: another socket has %s, and no other IPv6 address of this machine is certain", a, ip)
		}
		four := a
		four.AddrPort = netip.AddrPortFrom(netip.IPv4Unspecified(), a.AddrPort.Port())
		var err error
		if there, err = onPort(diag, four); err != nil {
			return a, err
		}
		if taken(there, netip.IPv4Unspecified()) {
			return a, fmt.Errorf("reach the sockets of %s: another socket has %s, and others have IPv4", a, ip)
		}
	}
	// Every 127.0.0.0/8 address is this machine's.
	for last := byte(1); last < 255; last++ {
		if ip := netip.AddrFrom4([4]byte{127, 0, 0, last}); !taken(there, ip) {
			a.way = ip
			return a, nil
		}
	}
	return a, fmt.Errorf("reach the sockets of %s: others have all of 127.0.0.1 to 127.0.0.254", a)
}

func taken(there []sockdiag.Socket, ip netip.Addr) bool {
	return slices.ContainsFunc(there, func(s sockdiag.Socket) bool { return s.Local.Addr().Unmap() == ip })
}

// reachable is through with a look of its own.
func reachable(a Address) (Address, error) {
	if !a.AddrPort.Addr().IsUnspecified() {
		return a, nil
	}
	diag, err := sockdiag.Open()
	if err != nil {
		return a, fmt.Errorf("reach the sockets of %s: %w", a, err)
	}
	defer diag.Close()
	there, err := onPort(diag, a)
	if err != nil {
		return a, fmt.Errorf("reach the sockets of %s: %w", a, err)
	}
	return through(diag, a, there)
}
