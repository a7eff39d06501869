package reuse

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// PacketConn is a UDP socket whose reads can end before its writes do: a server that leaves still
// owes answers to what it has read. One of a member's is hidden by Close before it goes. Its methods
// may be called from any goroutine.
type PacketConn struct {
	*net.UDPConn
	leave func() error
	mu    sync.Mutex // of the read deadline
	deaf  atomic.Bool
}

// NewPacketConn gives a socket that a launcher steers the same ending.
func NewPacketConn(c *net.UDPConn) *PacketConn {
	return &PacketConn{UDPConn: c, leave: sync.OnceValue(func() error {
		if raw, err := c.SyscallConn(); err == nil && steering {
			raw.Control(func(fd uintptr) { hide(int(fd)) })
			<-grace()
		}
		return c.Close()
	})}
}

// ListenPacket opens a UDP socket in the member's group, gated like that of [Member.Listen].
// Several of one generation share the datagrams by their flow.
func (m *Member) ListenPacket(ctx context.Context) (*PacketConn, error) {
	a := m.Address()
	if a.Network != "udp" {
		return nil, fmt.Errorf("listen on %s %s: not a datagram address", a.Network, a)
	}
	m.coming.Lock()
	defer m.coming.Unlock()
	lc := net.ListenConfig{Control: control(a)}
	pc, err := lc.ListenPacket(ctx, a.Net(), a.String())
	if err != nil {
		return nil, fmt.Errorf("listen on udp %s: %w", a, explain(err))
	}
	udp := pc.(*net.UDPConn)
	c := NewPacketConn(udp)
	s, err := m.own(udp, udp.LocalAddr().(*net.UDPAddr).AddrPort(), &socket{close: udp.Close, deafen: c.CloseRead})
	if err != nil {
		udp.Close()
		return nil, fmt.Errorf("listen on udp %s: %w", a, err)
	}
	c.leave = func() error { return m.leave(s) }
	return c, nil
}

// Close takes the socket out of the group and closes it; later calls do nothing.
func (c *PacketConn) Close() error { return c.leave() }

// CloseRead ends all reads, those that wait too, with net.ErrClosed. What is written still goes out, until Close.
func (c *PacketConn) CloseRead() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deaf.Store(true)
	c.UDPConn.SetReadDeadline(time.Unix(1, 0))
}

// SetReadDeadline is that of net.UDPConn, and has no effect after CloseRead.
func (c *PacketConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deaf.Load() {
		return nil
	}
	return c.UDPConn.SetReadDeadline(t)
}

// SetDeadline is that of net.UDPConn, but for reads after CloseRead.
func (c *PacketConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// received is the error of a read: a deadline that CloseRead has set is none to try again after.
func (c *PacketConn) received(err error) error {
	if err != nil && c.deaf.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
		return &net.OpError{Op: "read", Net: "udp", Source: c.LocalAddr(), Err: net.ErrClosed}
	}
	return err
}

// Read is that of net.UDPConn, as are those below.
func (c *PacketConn) Read(b []byte) (int, error) {
	n, err := c.UDPConn.Read(b)
	return n, c.received(err)
}

func (c *PacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.UDPConn.ReadFrom(b)
	return n, from, c.received(err)
}

func (c *PacketConn) ReadFromUDP(b []byte) (int, *net.UDPAddr, error) {
	n, from, err := c.UDPConn.ReadFromUDP(b)
	return n, from, c.received(err)
}

func (c *PacketConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	n, from, err := c.UDPConn.ReadFromUDPAddrPort(b)
	return n, from, c.received(err)
}

func (c *PacketConn) ReadMsgUDP(b, oob []byte) (n, oobn, flags int, from *net.UDPAddr, err error) {
	n, oobn, flags, from, err = c.UDPConn.ReadMsgUDP(b, oob)
	return n, oobn, flags, from, c.received(err)
}

func (c *PacketConn) ReadMsgUDPAddrPort(b, oob []byte) (n, oobn, flags int, from netip.AddrPort, err error) {
	n, oobn, flags, from, err = c.UDPConn.ReadMsgUDPAddrPort(b, oob)
	return n, oobn, flags, from, c.received(err)
}

// SyscallConn is that of net.UDPConn; its reads end as the others do.
func (c *PacketConn) SyscallConn() (syscall.RawConn, error) {
	raw, err := c.UDPConn.SyscallConn()
	if err != nil {
		return nil, err
	}
	return rawPacketConn{raw, c}, nil
}

type rawPacketConn struct {
	syscall.RawConn
	conn *PacketConn
}

func (r rawPacketConn) Read(f func(fd uintptr) bool) error { return r.conn.received(r.RawConn.Read(f)) }
