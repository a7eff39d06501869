package reuse

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"overlap/reuse/sockdiag"
)

// RefuseDevice returns ErrDevice where a socket that is to be bound to the address is bound to a device,
// by its index, that the group's other sockets will not be bound to.
func RefuseDevice(a Address, index int) error {
	if index == 0 || index == ownDevice() {
		return nil
	}
	if zone, err := zoneIndex(a.AddrPort.Addr().Zone()); err == nil && int(zone) == index {
		return nil // it is bound to the device by its address, as they are
	}
	return onDevice(a, index)
}

func onDevice(a Address, index int) error {
	name := fmt.Sprintf("number %d", index)
	if device, err := net.InterfaceByIndex(index); err == nil {
		name = device.Name
	}
	return fmt.Errorf("%s %s on device %s: %w", a.Network, a, name, ErrDevice)
}

// ownDevice is the device that a new socket of this process is bound to: a VRF may be imposed on the
// process, and what it starts, from outside (ip-vrf(8)).
func ownDevice() int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	index, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX) // Linux 5.1
	if err != nil {
		return 0
	}
	return index
}

// oneDevice returns ErrDevice for sockets on one address that are not all bound to the same device, or to
// none: they are several groups. A hidden one stays in its group.
func oneDevice(a Address, sockets []sockdiag.Socket) error {
	var first *sockdiag.Socket
	for _, s := range sockets {
		switch {
		case s.Interface == hiddenIndex:
		case first == nil:
			first = &s
		case s.Interface != first.Interface:
			return onDevice(a, int(max(s.Interface, first.Interface)))
		}
	}
	return nil
}
