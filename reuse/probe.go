package reuse

import (
	"context"
	"fmt"
	"net"
	"syscall"
)

// othersLocked are the places that clients get while the member is probed. Where nobody serves they
// wait at a placeholder: not each of the member's sockets has a gate.
func (m *Member) othersLocked() []int {
	switch {
	case m.open:
		return m.places
	case len(m.serving) > 0:
		return m.serving
	case len(m.held) > 0:
		return m.held
	}
	return m.places
}

// DialProbe connects to the member's address and reaches the member's own sockets and no
// other generation's, through the public address, also while the gate is closed: from a port
// of its own that the program is told of before the connect. The places must be known from
// [Member.Settle]. One connects at a time.
func (m *Member) DialProbe(ctx context.Context) (net.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, err := reachable(m.addr)
	if err != nil {
		return nil, err
	}
	if !steering {
		return (&net.Dialer{}).DialContext(ctx, a.Network, a.Local().String())
	}
	if len(m.places) == 0 {
		return nil, fmt.Errorf("probe %s: no socket listens there", a)
	}
	others := m.othersLocked()
	var prepared error
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		err := c.Control(func(fd uintptr) {
			from, err := bindProbe(int(fd), a)
			if err == nil {
				err = m.attachLocked(probeProgram(a.Network, from, m.places, others))
			}
			prepared = err
		})
		if err != nil {
			return err
		}
		return prepared
	}}
	d.SetMultipathTCP(false)
	conn, err := d.DialContext(ctx, a.Network, a.Local().String())
	if prepared == nil && a.Network == "tcp" {
		if serr := m.attachLocked(serveProgram(a.Network, others)); serr != nil && err == nil {
			conn.Close()
			return nil, serr
		}
	}
	if err != nil {
		return nil, fmt.Errorf("probe %s: %w", a, err)
	}
	if a.Network == "tcp" {
		return &probeConn{Conn: conn}, nil
	}
	return conn, nil
}
