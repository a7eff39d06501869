package sockdiag

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// The kernel fills pieces of up to 32 KiB where the reader's buffer is that
	// large (net/netlink/af_netlink.c, netlink_dump); fewer pieces mean fewer
	// places where a walk is interrupted.
	receiveBuffer = 64 << 10

	dumpAttempts = 5
)

// Conn is an open sock_diag socket. It can be used again and again, also after
// an error, by one goroutine at a time.
type Conn struct {
	netlink *netlink.Conn // nil after an error: opened anew at the next use
	closed  bool
}

// Open opens a connection to the kernel's sock_diag, in the network namespace of
// the calling thread. It needs no privilege. It fails where the kernel has no
// sock_diag or a sandbox refuses AF_NETLINK.
func Open() (*Conn, error) {
	c := &Conn{}
	if err := c.open(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Conn) open() error {
	if c.closed {
		return fmt.Errorf("open sock_diag: %w", os.ErrClosed)
	}
	if c.netlink != nil {
		return nil
	}
	opened, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, &netlink.Config{MessageBufferSize: receiveBuffer})
	if err != nil {
		return fmt.Errorf("open sock_diag: %w", err)
	}
	c.netlink = opened
	return nil
}

// Close closes the connection. Later calls fail with [os.ErrClosed].
func (c *Conn) Close() error {
	if c.closed {
		return fmt.Errorf("close sock_diag: %w", os.ErrClosed)
	}
	c.closed = true
	if c.netlink == nil {
		return nil
	}
	if err := c.netlink.Close(); err != nil {
		return fmt.Errorf("close sock_diag: %w", err)
	}
	return nil
}

// Listeners returns the TCP listeners on a port; port 0 means all. The families are those of the
// sockets, [FamilyIPv4] and [FamilyIPv6]; none are both, here and below.
func (c *Conn) Listeners(port uint16, families ...uint8) ([]Socket, error) {
	return c.sockets("list TCP listeners", unix.IPPROTO_TCP, 1<<StateListen, port, families...)
}

// Bound returns the TCP sockets that are bound and neither listen nor are connected. Before Linux 6.8 the kernel shows
// none of them. It walks the whole table of ports for it, once for each family.
func (c *Conn) Bound(families ...uint8) ([]Socket, error) {
	return c.sockets("list bound TCP sockets", unix.IPPROTO_TCP, 1<<StateBound, 0, families...)
}

// Datagrams returns the UDP sockets with a local port, connected ones included
// ([StateEstablished]); port 0 means all.
func (c *Conn) Datagrams(port uint16, families ...uint8) ([]Socket, error) {
	return c.sockets("list UDP sockets", unix.IPPROTO_UDP, 1<<StateClosed|1<<StateEstablished, port, families...)
}

// HalfOpen returns the TCP connections to a local port whose handshake has begun
// and not ended (SYN_RECV); port 0 means all. The kernel does not say which
// listener of the port will get them. What SYN cookies stand for is in no table.
// A connection leaves this state only after it stands in its listener's accept
// queue, and keeps its cookie on the way (tcp_check_req, inet_csk_clone_lock).
//
// The kernel walks its whole table of connections for it, once for each family (that of the
// listener), which is milliseconds on a large machine.
func (c *Conn) HalfOpen(port uint16, families ...uint8) ([]Socket, error) {
	return c.sockets("list half-open connections", unix.IPPROTO_TCP, 1<<StateSynRecv, port, families...)
}

// Connections returns the TCP connections with a local port that are established
// or closing, in either direction (a client's too, whose own port it is); port 0
// means all. Those that wait in an accept queue are among them, with inode 0.
// What is left of a closed one (TIME_WAIT) is not. It takes as long as HalfOpen.
func (c *Conn) Connections(port uint16, families ...uint8) ([]Socket, error) {
	const states = 1<<StateEstablished | 1<<StateFinWait1 | 1<<StateFinWait2 |
		1<<StateCloseWait | 1<<StateLastAck | 1<<StateClosing
	found, err := c.sockets("list connections", unix.IPPROTO_TCP, states, port, families...)
	// A remnant whose peer has not closed yet is reported as FIN_WAIT2.
	return slices.DeleteFunc(found, func(s Socket) bool { return s.timer == timerTimeWait }), err
}

// UnixListeners returns all listening unix sockets of the network namespace.
func (c *Conn) UnixListeners() ([]UnixSocket, error) {
	const operation = "list unix listeners"
	messages, err := c.dump(unixRequest(1<<StateListen, 0))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", operation, err)
	}
	found := make([]UnixSocket, 0, len(messages))
	for _, m := range messages {
		s, err := parseUnix(m.Data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", operation, err)
		}
		found = append(found, s)
	}
	return found, nil
}

// Unix returns the unix socket of an inode. When there is none the error wraps
// [os.ErrNotExist]: the kernel looks for this one socket alone, so that answer is
// certain.
func (c *Conn) Unix(inode uint64) (UnixSocket, error) {
	s, err := c.unix(inode)
	if errors.Is(err, os.ErrNotExist) {
		// A kernel without unix_diag says the same, but refuses a dump too.
		if _, refused := c.dump(unixRequest(0, 0)); refused != nil {
			err = fmt.Errorf("unix sockets are not shown: %s", refused)
		}
	}
	if err != nil {
		return UnixSocket{}, fmt.Errorf("look up unix socket %d: %w", inode, err)
	}
	return s, nil
}

func (c *Conn) unix(inode uint64) (UnixSocket, error) {
	messages, err := c.execute(netlink.Request, unixRequest(^uint32(0), uint32(inode)))
	if err != nil {
		return UnixSocket{}, err
	}
	if len(messages) != 1 {
		return UnixSocket{}, fmt.Errorf("%d answers, want 1", len(messages))
	}
	return parseUnix(messages[0].Data)
}

// sockets asks once for IPv4 and once for IPv6, as the kernel keeps a handler for
// each.
func (c *Conn) sockets(operation string, protocol uint8, states uint32, port uint16, families ...uint8) ([]Socket, error) {
	if len(families) == 0 {
		families = []uint8{FamilyIPv4, FamilyIPv6}
	}
	var found []Socket
	for _, family := range families {
		messages, err := c.dump(inetRequest(family, protocol, states, port))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", operation, err)
		}
		for _, m := range messages {
			s, err := parseInet(protocol, m.Data)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", operation, err)
			}
			found = append(found, s)
		}
	}
	return found, nil
}

// dump repeats a dump that the kernel marks as inconsistent.
func (c *Conn) dump(request []byte) ([]netlink.Message, error) {
	for range dumpAttempts {
		messages, err := c.execute(netlink.Request|netlink.Dump, request)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(messages, interrupted) {
			return messages, nil
		}
	}
	return nil, ErrInterrupted
}

func interrupted(m netlink.Message) bool { return m.Header.Flags&netlink.DumpInterrupted != 0 }

// execute sends a request and reads its answers. After an error the socket is
// closed, because the rest of an answer could still be in it.
func (c *Conn) execute(flags netlink.HeaderFlags, request []byte) ([]netlink.Message, error) {
	if err := c.open(); err != nil {
		return nil, err
	}
	messages, err := c.netlink.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: flags},
		Data:   request,
	})
	if err != nil {
		err = errors.Join(err, c.netlink.Close())
		c.netlink = nil
		return nil, err
	}
	return messages, nil
}
