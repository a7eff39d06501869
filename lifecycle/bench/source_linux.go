package bench

import (
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// bindSource lets a client connect from an address of its own where the target is
// on loopback. With IP_BIND_ADDRESS_NO_PORT (ip(7)) the port is chosen at connect,
// where it needs to be free for this target only.
func bindSource(d *net.Dialer, target netip.AddrPort, index int) {
	source, ok := sourceFor(target, index)
	if !ok {
		return
	}
	d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	d.Control = func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		}); e != nil {
			return e
		}
		return err
	}
}
