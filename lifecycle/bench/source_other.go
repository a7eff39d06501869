//go:build !linux

package bench

import (
	"net"
	"net/netip"
)

// bindSource does nothing: only on Linux is all of 127.0.0.0/8 there to connect from.
func bindSource(*net.Dialer, netip.AddrPort, int) {}
