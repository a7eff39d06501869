package reuse

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	reuseport "github.com/libp2p/go-reuseport"
)

// Listener is a TCP listener of a member. It is a net.TCPListener whose Close hides the socket
// before it goes.
type Listener struct {
	*net.TCPListener
	member *Member
	socket *socket
}

// Close takes the socket out of the group and closes it; later calls do nothing.
func (l *Listener) Close() error { return l.member.leave(l.socket) }

// Listen opens a TCP listener in the member's group. It is gated: nobody but the probe
// reaches it before [Member.Switch]. It may be called several times, for several accept queues.
func (m *Member) Listen(ctx context.Context) (*Listener, error) {
	a := m.Address()
	if a.Network != "tcp" {
		return nil, fmt.Errorf("listen on %s %s: not a stream address", a.Network, a)
	}
	m.coming.Lock()
	defer m.coming.Unlock()
	lc := net.ListenConfig{Control: control(a)}
	// The program can't be attached to an MPTCP socket, Go's default.
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(ctx, a.Net(), a.String())
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", a, explain(err))
	}
	tcp := ln.(*net.TCPListener)
	s, err := m.own(tcp, tcp.Addr().(*net.TCPAddr).AddrPort(), &socket{close: tcp.Close})
	if err != nil {
		tcp.Close()
		return nil, fmt.Errorf("listen on %s: %w", a, err)
	}
	return &Listener{tcp, m, s}, nil
}

// control makes a socket share its port (go-reuseport) and closes its gate before it is bound.
func control(a Address) func(network, address string, c syscall.RawConn) error {
	return func(network, address string, c syscall.RawConn) error {
		if err := reuseport.Control(network, address, c); err != nil || !steering {
			return err
		}
		var gateErr error
		if err := c.Control(func(fd uintptr) { gateErr = closeGate(int(fd), a) }); err != nil {
			return err
		}
		return gateErr
	}
}

// own makes a socket of this process one of the member's.
func (m *Member) own(c syscall.Conn, at netip.AddrPort, s *socket) (*socket, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	s.control = func(f func(fd int) error) error {
		var inner error
		if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
			return err
		}
		return inner
	}
	if canSteer {
		if err := s.control(func(fd int) (err error) { s.inode, err = inode(fd); return }); err != nil {
			return nil, err
		}
	}
	m.mu.Lock()
	if m.addr.AddrPort.Port() == 0 {
		m.addr.AddrPort = netip.AddrPortFrom(m.addr.AddrPort.Addr(), at.Port())
	}
	m.mu.Unlock()
	return s, m.join(s)
}
