package sockdiag

import (
	"errors"
	"net/netip"
)

// ErrInterrupted means that the kernel marked every one of several dumps as
// inconsistent (NLM_F_DUMP_INTR), so none of them can be relied on.
var ErrInterrupted = errors.New("socket dump was interrupted each time")

// Linux numbers of address families, as [Socket.Family] has them on every
// platform (other platforms number IPv6 differently).
const (
	FamilyUnix uint8 = 1
	FamilyIPv4 uint8 = 2
	FamilyIPv6 uint8 = 10
)

// TCP states as [Socket.State] has them; UDP knows StateEstablished (connected)
// and StateClosed (only bound). From the kernel's include/net/tcp_states.h.
const (
	StateEstablished uint8 = 1
	StateSynSent     uint8 = 2
	StateSynRecv     uint8 = 3
	StateFinWait1    uint8 = 4
	StateFinWait2    uint8 = 5
	StateTimeWait    uint8 = 6
	StateClosed      uint8 = 7
	StateCloseWait   uint8 = 8
	StateLastAck     uint8 = 9
	StateListen      uint8 = 10
	StateClosing     uint8 = 11
	StateBound       uint8 = 13 // of a request alone: StateClosed is what the kernel answers, see [Conn.Bound]
)

// Socket is what the kernel says of one TCP or UDP socket.
type Socket struct {
	Protocol uint8 // IPPROTO_TCP or IPPROTO_UDP
	Family   uint8 // FamilyIPv4 or FamilyIPv6
	State    uint8 // StateListen and so on

	// Local and Remote are as the kernel gives them: an IPv4 client of a
	// dual-stack IPv6 socket appears as an IPv4-mapped IPv6 address and is not
	// unmapped, because it is not the same socket as the plain IPv4 one. They
	// have no zone; Interface tells link-local addresses apart.
	Local, Remote netip.AddrPort

	Interface uint32 // index of the device it is bound to, 0 for none
	Inode     uint64 // as in /proc/PID/fd; 0 when no process holds it (half-open, orphaned)
	Cookie    uint64 // the kernel's number for it, not used again until reboot
	UID       uint32 // its user, as this user namespace sees it

	// RQueue and WQueue are bytes received and not read, and bytes sent and not
	// acknowledged. For a TCP listener they are connections: those waiting in
	// the accept queue, and the queue's limit. For UDP, RQueue is memory in use
	// (bytes with the kernel's overhead), so that an empty datagram counts too.
	RQueue, WQueue uint32

	// Drops counts packets that the socket dropped (SK_MEMINFO_DROPS): for a
	// listener SYNs and last ACKs, for UDP datagrams. 0 for half-open ones.
	Drops uint32

	// V6Only tells whether an IPv6 socket takes IPv6 only. The kernel says so
	// for listeners and for UDP sockets that are not connected; else it is false.
	V6Only bool

	timer uint8 // idiag_timer; timerTimeWait marks what is left of a closed one
}

// Descriptor is a number by which a process has a socket.
type Descriptor struct {
	FD    int
	Inode uint64
}

// Owner is a process's descriptor for a socket.
type Owner struct {
	PID     int
	Command string // the kernel's name of the process (comm, at most 15 bytes), made printable
	FD      int
}

// UnixSocket is what the kernel says of one unix socket.
type UnixSocket struct {
	Type   uint8 // SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET
	State  uint8 // StateListen, StateEstablished or StateClosed
	Inode  uint64
	Cookie uint64

	// Name is the name it was bound to, as given to bind(2): a relative one stays
	// relative, and a rename of the file does not change it. Abstract names
	// begin with a zero byte. Empty for an unnamed socket.
	Name string

	// FileInode (its low 32 bits) and FileDevice (major<<20 | minor, the
	// kernel's own form) are those of the file it is bound to, 0 without one. On
	// stacked file systems they differ from what stat(2) says.
	FileInode, FileDevice uint32

	// RQueue and WQueue: for a listener the connections waiting in its accept
	// queue and the queue's limit; else bytes.
	RQueue, WQueue uint32
}

// Reference is what the kernel holds of a TCP listener.
type Reference struct {
	// Count is the number of references: one is the socket's own (an MPTCP listener's subflow has
	// two), and each connection that is half-open, or was and waits to be accepted, has one more.
	Count int
	// Queued is how many connections wait to be accepted. Those that a SYN cookie let in are among
	// them, and have no reference.
	Queued int
}
