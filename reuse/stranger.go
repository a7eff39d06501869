package reuse

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"overlap/reuse/sockdiag"
)

// ErrStranger means that somebody who is not of the service listens already.
var ErrStranger = errors.New("somebody else listens there")

// Stranger is a listener, or a bound UDP socket, with a process that holds it.
// One that several processes hold appears once for each of them.
type Stranger struct {
	PID     int    // 0 when the process cannot be seen
	Command string // the process's name, "" when it cannot be seen
	Network string // "tcp", "udp" or "unix"
	Address netip.AddrPort
	V6Only  bool // an IPv6 socket that takes no IPv4
	Inode   uint64
	UID     uint32 // the socket's user
}

// String names the process in words: "nginx (pid 12)".
func (s Stranger) String() string {
	switch {
	case s.PID != 0 && s.Command != "":
		return fmt.Sprintf("%s (pid %d)", s.Command, s.PID)
	case s.PID != 0:
		return fmt.Sprintf("pid %d", s.PID)
	default:
		return "a process that cannot be seen"
	}
}

// Listening tells who listens on a TCP port, or is bound to a UDP port, of this
// network namespace. network is "tcp" or "udp"; a 4 or 6 behind it changes nothing,
// because one family's socket may take the other's clients ([Overlaps] tells).
// Connected UDP sockets are left out: they hear their peer only. Port 0 means all
// ports.
//
// Where it cannot be known the error wraps what sock_diag said, on other platforms
// than Linux [errors.ErrUnsupported].
func Listening(network string, port uint16) ([]Stranger, error) {
	found, err := listeningSockets(network, port)
	if err != nil {
		return nil, fmt.Errorf("list who listens on %s port %d: %w", network, port, err)
	}
	inodes := make([]uint64, 0, len(found))
	for _, s := range found {
		inodes = append(inodes, s.Inode)
	}
	owners, err := sockdiag.Owners(inodes...)
	if err != nil {
		owners = nil // without /proc the listeners are known and their processes not
	}
	var strangers []Stranger
	for _, s := range found {
		one := Stranger{
			Network: strings.TrimRight(network, "46"),
			Address: s.Local, V6Only: s.V6Only, Inode: s.Inode, UID: s.UID,
		}
		strangers = append(strangers, withOwners(one, owners[s.Inode])...)
	}
	return strangers, nil
}

// Sockets is [Listening] without the processes, which are looked for in all of /proc: one
// entry a socket.
func Sockets(network string, port uint16) ([]Stranger, error) {
	found, err := listeningSockets(network, port)
	if err != nil {
		return nil, fmt.Errorf("list who listens on %s port %d: %w", network, port, err)
	}
	var all []Stranger
	for _, s := range found {
		all = append(all, Stranger{Network: strings.TrimRight(network, "46"), Address: s.Local,
			V6Only: s.V6Only, Inode: s.Inode, UID: s.UID})
	}
	return all, nil
}

func listeningSockets(network string, port uint16) ([]sockdiag.Socket, error) {
	diag, err := sockdiag.Open()
	if err != nil {
		return nil, err
	}
	defer diag.Close()
	switch network {
	case "tcp", "tcp4", "tcp6":
		return diag.Listeners(port)
	case "udp", "udp4", "udp6":
	default:
		return nil, fmt.Errorf("unknown network %q", network)
	}
	all, err := diag.Datagrams(port)
	var bound []sockdiag.Socket
	for _, s := range all {
		if s.State == sockdiag.StateClosed {
			bound = append(bound, s)
		}
	}
	return bound, err
}

// withOwners returns the stranger once for each process.
func withOwners(s Stranger, owners []sockdiag.Owner) []Stranger {
	var each []Stranger
	for _, o := range owners {
		if len(each) > 0 && each[len(each)-1].PID == o.PID {
			continue // a second descriptor
		}
		s.PID, s.Command = o.PID, o.Command
		each = append(each, s)
	}
	if each == nil {
		return []Stranger{s}
	}
	return each
}

// Overlaps compares two listening addresses of one network. They are equal when
// sockets bound to them form one reuseport group of the kernel: the same family,
// address, zone, port and V6ONLY (inet_reuseport_add_sock). They overlap when a
// client could reach either; the kernel then takes the more specific one, whatever
// any steering says. Equal ones overlap.
//
// 0.0.0.0 takes all IPv4; [::] takes all IPv6, and IPv4 too unless it is V6Only. An
// IPv4-mapped address takes what its IPv4 address does. An address that is not valid
// stands for [::], as an empty host does for the net package. Port 0 asks for a port
// that is free, so it overlaps nothing.
func Overlaps(a, b netip.AddrPort, aV6Only, bV6Only bool) (equal, overlap bool) {
	if a.Port() != b.Port() || a.Port() == 0 {
		return false, false
	}
	from, to := reachOf(a.Addr(), aV6Only), reachOf(b.Addr(), bV6Only)
	if from == to {
		return true, true
	}
	return false, from.meets(to)
}

// reach is what a listening address takes. As a value it identifies the group.
type reach struct {
	addr   netip.Addr
	v6only bool
}

func reachOf(addr netip.Addr, v6only bool) reach {
	if !addr.IsValid() {
		addr = netip.IPv6Unspecified()
	}
	return reach{addr: addr, v6only: v6only && addr.Is6()}
}

func (r reach) meets(other reach) bool {
	switch a, b := r.addr.Unmap(), other.addr.Unmap(); {
	case a.IsUnspecified():
		return a.Is4() == b.Is4() || r.crosses() || other.crosses()
	case b.IsUnspecified():
		return other.meets(r)
	default:
		// A zone that is not given may be any.
		return a.WithZone("") == b.WithZone("") && (a.Zone() == b.Zone() || a.Zone() == "" || b.Zone() == "")
	}
}

// crosses reports a dual-stack wildcard.
func (r reach) crosses() bool { return r.addr == netip.IPv6Unspecified() && !r.v6only }
