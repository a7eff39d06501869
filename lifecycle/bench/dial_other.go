//go:build !linux

package bench

import (
	"net"
	"net/netip"
	"time"
)

// dialer opens the connections of one client.
type dialer struct {
	net.Dialer
	target string
}

// newDialer leaves the source address to the kernel: only on Linux is all of
// 127.0.0.0/8 there to connect from.
func newDialer(target netip.AddrPort, _ int) *dialer {
	return &dialer{net.Dialer{KeepAlive: -1}, target.String()}
}

// dial opens a connection and leaves the deadline set on it.
func (d *dialer) dial(deadline time.Time) (net.Conn, error) {
	d.Deadline = deadline
	c, err := d.Dial("tcp", d.target)
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(deadline); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}
