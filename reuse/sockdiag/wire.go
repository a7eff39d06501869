package sockdiag

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

// The messages of linux/inet_diag.h, linux/unix_diag.h and linux/sock_diag.h.
// Numbers are in the machine's byte order, ports and addresses in the network's.
const (
	inetRequestLen = 56 // struct inet_diag_req_v2
	inetReplyLen   = 72 // struct inet_diag_msg
	unixRequestLen = 24 // struct unix_diag_req
	unixReplyLen   = 16 // struct unix_diag_msg

	attrSKMemInfo = 7  // INET_DIAG_SKMEMINFO
	attrSKV6Only  = 11 // INET_DIAG_SKV6ONLY

	memInfoDrops = 8 // SK_MEMINFO_DROPS, an index of 32-bit words

	unixAttrName  = 0 // UNIX_DIAG_NAME
	unixAttrVFS   = 1 // UNIX_DIAG_VFS
	unixAttrRQLen = 4 // UNIX_DIAG_RQLEN
	unixShowName  = 0x01
	unixShowVFS   = 0x02
	unixShowRQLen = 0x10
	attrHeaderLen = 4
	attrTypeMask  = 0x3fff // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
	timerTimeWait = 3      // idiag_timer of a TIME_WAIT remnant, also of one in FIN_WAIT2
	noCookie      = 0xffffffff
	protocolTCP   = 6
	protocolUDP   = 17
)

// inetRequest asks for sockets of a family and protocol in any of the states,
// with the local port (0 for all). The kernel compares the port itself, before
// it builds an answer, so what does not match costs a comparison and no copy
// (net/ipv4/inet_diag.c, inet_diag_dump_icsk; net/ipv4/udp_diag.c, udp_dump).
func inetRequest(family, protocol uint8, states uint32, port uint16) []byte {
	b := make([]byte, inetRequestLen)
	b[0], b[1] = family, protocol
	b[2] = 1 << (attrSKMemInfo - 1) // idiag_ext
	binary.NativeEndian.PutUint32(b[4:], states)
	binary.BigEndian.PutUint16(b[8:], port) // id.idiag_sport
	return b
}

// unixRequest asks for unix sockets in any of the states, or, outside a dump, for
// the one of an inode.
func unixRequest(states, inode uint32) []byte {
	b := make([]byte, unixRequestLen)
	b[0] = FamilyUnix
	binary.NativeEndian.PutUint32(b[4:], states)
	binary.NativeEndian.PutUint32(b[8:], inode)
	binary.NativeEndian.PutUint32(b[12:], unixShowName|unixShowVFS|unixShowRQLen)
	binary.NativeEndian.PutUint32(b[16:], noCookie)
	binary.NativeEndian.PutUint32(b[20:], noCookie)
	return b
}

// parseInet reads a struct inet_diag_msg with its attributes.
func parseInet(protocol uint8, b []byte) (Socket, error) {
	if len(b) < inetReplyLen {
		return Socket{}, fmt.Errorf("parse socket: %d bytes, want at least %d", len(b), inetReplyLen)
	}
	order := binary.NativeEndian
	s := Socket{
		Protocol:  protocol,
		Family:    b[0],
		State:     b[1],
		timer:     b[2],
		Interface: order.Uint32(b[40:]),
		Cookie:    uint64(order.Uint32(b[44:])) | uint64(order.Uint32(b[48:]))<<32,
		RQueue:    order.Uint32(b[56:]),
		WQueue:    order.Uint32(b[60:]),
		UID:       order.Uint32(b[64:]),
		Inode:     uint64(order.Uint32(b[68:])),
	}
	source, destination := b[8:24], b[24:40]
	switch s.Family {
	case FamilyIPv4:
		s.Local = netip.AddrPortFrom(netip.AddrFrom4([4]byte(source)), binary.BigEndian.Uint16(b[4:]))
		s.Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte(destination)), binary.BigEndian.Uint16(b[6:]))
	case FamilyIPv6:
		s.Local = netip.AddrPortFrom(netip.AddrFrom16([16]byte(source)), binary.BigEndian.Uint16(b[4:]))
		s.Remote = netip.AddrPortFrom(netip.AddrFrom16([16]byte(destination)), binary.BigEndian.Uint16(b[6:]))
	default:
		return Socket{}, fmt.Errorf("parse socket: address family %d is neither IPv4 nor IPv6", s.Family)
	}
	err := attributes(b[inetReplyLen:], func(kind uint16, value []byte) {
		switch {
		case kind == attrSKMemInfo && len(value) >= 4*(memInfoDrops+1):
			s.Drops = order.Uint32(value[4*memInfoDrops:])
		case kind == attrSKV6Only && len(value) >= 1:
			s.V6Only = value[0] != 0
		}
	})
	if err != nil {
		return Socket{}, fmt.Errorf("parse socket: %w", err)
	}
	return s, nil
}

// parseUnix reads a struct unix_diag_msg with its attributes.
func parseUnix(b []byte) (UnixSocket, error) {
	if len(b) < unixReplyLen {
		return UnixSocket{}, fmt.Errorf("parse unix socket: %d bytes, want at least %d", len(b), unixReplyLen)
	}
	order := binary.NativeEndian
	if b[0] != FamilyUnix {
		return UnixSocket{}, fmt.Errorf("parse unix socket: address family %d is not unix", b[0])
	}
	s := UnixSocket{
		Type:   b[1],
		State:  b[2],
		Inode:  uint64(order.Uint32(b[4:])),
		Cookie: uint64(order.Uint32(b[8:])) | uint64(order.Uint32(b[12:]))<<32,
	}
	err := attributes(b[unixReplyLen:], func(kind uint16, value []byte) {
		switch {
		case kind == unixAttrName:
			s.Name = unixName(value)
		case kind == unixAttrVFS && len(value) >= 8:
			s.FileInode, s.FileDevice = order.Uint32(value), order.Uint32(value[4:])
		case kind == unixAttrRQLen && len(value) >= 8:
			s.RQueue, s.WQueue = order.Uint32(value), order.Uint32(value[4:])
		}
	})
	if err != nil {
		return UnixSocket{}, fmt.Errorf("parse unix socket: %w", err)
	}
	return s, nil
}

// unixName cuts the zero byte that ends a file's name; an abstract one begins
// with it and is taken whole.
func unixName(b []byte) string {
	if len(b) > 0 && b[0] == 0 {
		return string(b)
	}
	return strings.TrimRight(string(b), "\x00")
}

// attributes calls each for every attribute of a netlink message (netlink(7)).
func attributes(b []byte, each func(kind uint16, value []byte)) error {
	for len(b) > 0 {
		if len(b) < attrHeaderLen {
			return fmt.Errorf("attribute header is cut off after %d bytes", len(b))
		}
		n := int(binary.NativeEndian.Uint16(b))
		if n < attrHeaderLen || n > len(b) {
			return fmt.Errorf("attribute of %d bytes in %d that are left", n, len(b))
		}
		each(binary.NativeEndian.Uint16(b[2:])&attrTypeMask, b[attrHeaderLen:n])
		b = b[min(len(b), (n+3)&^3):]
	}
	return nil
}
