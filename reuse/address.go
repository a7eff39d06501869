package reuse

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"overlap/reuse/sockdiag"
)

// Address is a resolved address that generations share. The zero value is no address.
type Address struct {
	// Network is "tcp" or "udp".
	Network string
	// AddrPort is what the sockets are bound to; port 0 lets the kernel choose one.
	AddrPort netip.AddrPort
	// V6Only is true where a socket on an IPv6 address gets no IPv4 (always so for an
	// address that is not the wildcard).
	V6Only bool

	way netip.Addr // what Local is where another socket has the usual one; see through
}

// ParseAddress resolves network ("tcp", "tcp4", "tcp6", "udp", "udp4", "udp6") and addr
// ("host:port" as net.Listen takes it). An empty host, and "::", is the dual-stack wildcard [::], or
// 0.0.0.0 where the machine has no IPv6.
func ParseAddress(ctx context.Context, network, addr string) (Address, error) {
	var a Address
	switch network {
	case "tcp", "tcp4", "tcp6":
		a.Network = "tcp"
	case "udp", "udp4", "udp6":
		a.Network = "udp"
	default:
		return a, fmt.Errorf("address %s: %w", addr, net.UnknownNetworkError(network))
	}
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return a, fmt.Errorf("address %q: %w", addr, err)
	}
	port, err := net.DefaultResolver.LookupPort(ctx, a.Network, service)
	if err != nil {
		return a, fmt.Errorf("address %q: %w", addr, err)
	}
	ip := netip.IPv6Unspecified()
	if literal, err := netip.ParseAddr(host); err == nil && literal == ip {
		host = "" // the resolver adds 0.0.0.0 to it, so that net.Dial finds a way
	}
	switch {
	case host == "" && strings.HasSuffix(network, "4"), host == "" && !hasIPv6():
		ip = netip.IPv4Unspecified()
	case host == "":
		a.V6Only = strings.HasSuffix(network, "6")
	default:
		ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip"+strings.TrimLeft(network, "tcpud"), host)
		if err != nil {
			return a, fmt.Errorf("address %q: %w", addr, err)
		}
		ip = preferred(ips).Unmap()
		a.V6Only = ip.Is6() && (!ip.IsUnspecified() || strings.HasSuffix(network, "6"))
	}
	a.AddrPort = netip.AddrPortFrom(ip, uint16(port))
	return a, nil
}

// preferred is the address net.Listen would take of several: the first IPv4 one, or the first.
func preferred(ips []netip.Addr) netip.Addr {
	for _, ip := range ips {
		if ip.Unmap().Is4() {
			return ip
		}
	}
	return ips[0]
}

func hasIPv6() bool {
	l, err := net.ListenPacket("udp6", "[::]:0")
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// String is the address as net.Listen takes it.
func (a Address) String() string {
	if !a.AddrPort.IsValid() {
		return ""
	}
	return a.AddrPort.String()
}

// Is4 reports whether sockets on the address are IPv4 sockets.
func (a Address) Is4() bool { return a.AddrPort.Addr().Is4() }

// Family is what package sockdiag calls the family of sockets on the address, and of their connections.
func (a Address) Family() uint8 {
	if a.Is4() {
		return sockdiag.FamilyIPv4
	}
	return sockdiag.FamilyIPv6
}

// socketNetwork is the network with the sockets' family, which is IPv6 also where they are dual-stack.
func (a Address) socketNetwork() string {
	if a.Is4() {
		return a.Network + "4"
	}
	return a.Network + "6"
}

// Net is the network that makes package net bind exactly this address: "tcp" on [::] is
// dual-stack, every other is of one family.
func (a Address) Net() string {
	switch {
	case a.Is4():
		return a.Network + "4"
	case a.V6Only:
		return a.Network + "6"
	}
	return a.Network
}

// ExactAddress is the inverse of [Address.String] for a network of "tcp" or "udp".
func ExactAddress(network, addr string, v6only bool) (Address, error) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return Address{}, fmt.Errorf("address %q: %w", addr, err)
	}
	ip := ap.Addr()
	v6only = v6only || ip.Is6() && !ip.Is4In6() && !ip.IsUnspecified()
	return Address{Network: network, AddrPort: ap, V6Only: v6only}, nil
}

// Local is the address a process of this machine reaches the sockets at: the loopback
// address for a wildcard.
func (a Address) Local() netip.AddrPort {
	ip := a.AddrPort.Addr()
	switch {
	case a.way.IsValid():
		ip = a.way
	case ip.IsUnspecified():
		ip = netip.IPv6Loopback()
		if a.Is4() || !a.V6Only && !hasLoopback6() {
			ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
	}
	return netip.AddrPortFrom(ip.Unmap(), a.AddrPort.Port())
}

// hasLoopback6 reports whether ::1 is an address of this network namespace.
func hasLoopback6() bool {
	l, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// ErrNoSteering is wrapped by errors that say that this platform or kernel cannot steer a
// group of sockets.
var ErrNoSteering = errors.New("steering needs Linux 4.12 or later")
