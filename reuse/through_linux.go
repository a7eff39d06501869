package reuse

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"overlap/reuse/sockdiag"
)

// through says where this machine's packets reach the sockets of an address: a wildcard's are found at any
// address of the machine, unless a socket has that one for itself, which the kernel takes first
// (compute_score in net/ipv4/inet_hashtables.c). there are the sockets of the port and family.
func through(diag *sockdiag.Conn, a Address, there []sockdiag.Socket) (Address, error) {
	if !a.AddrPort.Addr().IsUnspecified() {
		return a, nil
	}
	if a.V6Only {
		return through6(a, there)
	}
	ip := a.Local().Addr()
	if !taken(there, ip) {
		return a, nil
	}
	if !a.Is4() && !ip.Is4() {
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

// errNoWay says that an address is IPv6's alone, and this machine has none of IPv6, as a container has not where
// net.ipv6.conf.all.disable_ipv6 is set: no packet can come to its sockets.
var errNoWay = errors.New("this machine has no IPv6 address")

// through6 is through for a wildcard that takes no IPv4.
func through6(a Address, there []sockdiag.Socket) (Address, error) {
	if hasLoopback6() && !taken(there, netip.IPv6Loopback()) {
		return a, nil
	}
	own, err := addresses6()
	if err != nil {
		return a, fmt.Errorf("reach the sockets of %s: %w", a, err)
	}
	if len(own) == 0 {
		return a, fmt.Errorf("reach the sockets of %s: %w", a, errNoWay)
	}
	for _, ip := range own {
		if !taken(there, ip.WithZone("")) {
			a.way = ip
			return a, nil
		}
	}
	return a, fmt.Errorf("reach the sockets of %s: others have all IPv6 addresses of this machine", a)
}

// addresses6 are the IPv6 addresses of this network namespace that are in use, those of a link last.
func addresses6() ([]netip.Addr, error) {
	devices, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var all, linked []netip.Addr
	for _, d := range devices {
		addrs, err := d.Addrs()
		if err != nil {
			return nil, err
		}
		for _, at := range addrs {
			prefix, err := netip.ParsePrefix(at.String())
			ip, to := prefix.Addr(), &all
			if ip.IsLinkLocalUnicast() {
				ip, to = ip.WithZone(d.Name), &linked
			}
			if err == nil && ip.Is6() && !tentative(ip) {
				*to = append(*to, ip)
			}
		}
	}
	return append(all, linked...), nil
}

// tentative reports whether an IPv6 address is not in use yet, or never will be, because somebody else may have it.
func tentative(ip netip.Addr) bool {
	l, err := net.ListenPacket("udp6", netip.AddrPortFrom(ip, 0).String())
	if err != nil {
		return errors.Is(err, unix.EADDRNOTAVAIL)
	}
	l.Close()
	return false
}

// Reachable reports whether anybody could send a packet to the sockets of an address: false for one that takes IPv6
// alone, where this machine has no IPv6 address.
func (a Address) Reachable() bool {
	_, err := reachable(a)
	return !errors.Is(err, errNoWay)
}

// AwaitReachable waits until somebody could send a packet to the sockets of an address that is not reachable. The error is
// ctx's, or what keeps the kernel from telling.
func AwaitReachable(ctx context.Context, a Address) error {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Groups: unix.RTMGRP_IPV6_IFADDR})
	if err != nil {
		return fmt.Errorf("watch the addresses of this machine: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })()
	for !a.Reachable() {
		_, err := conn.Receive() // also when an address that somebody else might have had is in use
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !errors.Is(err, unix.ENOBUFS) { // there were more than fit
			return fmt.Errorf("watch the addresses of this machine: %w", err)
		}
	}
	return nil
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
