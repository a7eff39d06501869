package reuse

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"overlap/reuse/sockdiag"
)

func loopback(t *testing.T) int {
	t.Helper()
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	return lo.Index
}

// Its group is not the one with the placeholder: to go on would be to look for it in vain, with packets that
// clients' connections are dropped with.
func TestSocketOnDevice(t *testing.T) {
	for _, device := range []int{0, loopback(t)} {
		g := Open(resolve(t, "tcp", "127.0.0.1:0"), -1)
		first, err := g.Listen(t.Context()) // for the port
		if err != nil {
			t.Fatal(err)
		}
		defer g.Leave()
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		sa, err := sockaddr(g.Address())
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(Share(fd, g.Address()), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, device),
			unix.Bind(fd, sa), unix.Listen(fd, 1)); err != nil {
			t.Fatal(err)
		}
		if err := g.Settle(nil); errors.Is(err, ErrDevice) != (device != 0) || err != nil && device == 0 {
			t.Errorf("beside a socket on device %d: %v", device, err)
		}
		first.Close()
	}
}

func TestOneDevice(t *testing.T) {
	for _, c := range []struct {
		devices []uint32
		several bool
	}{
		{nil, false},
		{[]uint32{0, 0}, false},
		{[]uint32{3, 3}, false}, // a VRF is imposed on all of them
		{[]uint32{hiddenIndex, 0, hiddenIndex}, false},
		{[]uint32{0, 3}, true},
		{[]uint32{hiddenIndex, 3, 0}, true},
	} {
		var sockets []sockdiag.Socket
		for _, d := range c.devices {
			sockets = append(sockets, sockdiag.Socket{Interface: d})
		}
		if err := oneDevice(Address{Network: "tcp"}, sockets); errors.Is(err, ErrDevice) != c.several {
			t.Errorf("%v: %v", c.devices, err)
		}
	}
}

func TestRefuseDevice(t *testing.T) {
	lo := loopback(t)
	for addr, refused := range map[string]bool{"0.0.0.0:80": true, "[::]:80": true, "[fe80::1%lo]:80": false} {
		a := Address{Network: "tcp", AddrPort: netip.MustParseAddrPort(addr)}
		if err := RefuseDevice(a, lo); errors.Is(err, ErrDevice) != refused {
			t.Errorf("%s on lo: %v", addr, err)
		}
		if err := RefuseDevice(a, 0); err != nil {
			t.Errorf("%s on no device: %v", addr, err)
		}
	}
}
