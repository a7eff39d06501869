package webroot

import (
	"errors"
	"net"
	"strconv"
)

const maxDatagram = 65535 // bytes

// EchoDatagrams is /echo for UDP: it sends each datagram back to where it came from, with a
// line "\nOverlap-Generation: N" behind it, until pc is closed. The line is left out where it
// does not fit. A datagram whose answer cannot be sent is lost, as datagrams may be.
func EchoDatagrams(pc net.PacketConn, generation func() int) error {
	line := "\n" + GenerationHeader + ": "
	buf := make([]byte, maxDatagram, maxDatagram+64)
	for {
		n, from, err := pc.ReadFrom(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return err
		}
		named := strconv.AppendInt(append(buf[:n], line...), int64(generation()), 10)
		if _, err := pc.WriteTo(named, from); err != nil {
			pc.WriteTo(buf[:n], from)
		}
	}
}
