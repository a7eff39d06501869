package webroot

import (
	"errors"
	"net"
)

const maxDatagram = 65535 // bytes

// EchoDatagrams sends each datagram back to where it came from, until pc is closed. It is
// /echo for UDP. A datagram whose answer cannot be sent is lost, as datagrams may be.
func EchoDatagrams(pc net.PacketConn) error {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := pc.ReadFrom(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return err
		}
		pc.WriteTo(buf[:n], from)
	}
}
