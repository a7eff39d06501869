package bench

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dialer opens the connections of one client. With a connection for each request this
// is most of what the generator does. net.Dialer asks for both addresses of each
// connection, waits for it in the scheduler and with a timer of its own, and makes some
// twenty allocations; this one asks for nothing that it knows, and does not wait for
// what is there: on loopback a connection stands when connect(2) returns.
type dialer struct {
	family         int
	target, source unix.Sockaddr // source may be nil: the kernel's choice
	local, remote  net.Addr
	name           string
}

func newDialer(target netip.AddrPort, index int) *dialer {
	d := &dialer{
		family: unix.AF_INET, target: sockaddr(target), remote: net.TCPAddrFromAddrPort(target),
		name: target.String(),
	}
	if !target.Addr().Is4() {
		d.family = unix.AF_INET6
	}
	if ip, ok := sourceFor(target, index); ok {
		source := netip.AddrPortFrom(ip, 0)
		d.source, d.local = sockaddr(source), net.TCPAddrFromAddrPort(source)
	}
	return d
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16(), ZoneId: zoneID(a.Addr().Zone())}
}

// zoneID is the number of an interface, which a link-local address may name.
func zoneID(zone string) uint32 {
	if i, err := net.InterfaceByName(zone); err == nil {
		return uint32(i.Index)
	}
	n, _ := strconv.ParseUint(zone, 10, 32)
	return uint32(n)
}

// sourceFor spreads clients over the addresses of 127.0.0.0/24 where the target is
// in 127.0.0.0/8: one source address has some 28,000 ports, and each stays taken for
// 60 s after a close (TIME_WAIT), which a connection for each request uses up in
// seconds. The target's own address is none of them: there a client takes a port that
// a server may be about to listen on.
func sourceFor(target netip.AddrPort, index int) (netip.Addr, bool) {
	if !target.Addr().Is4() || !target.Addr().IsLoopback() {
		return netip.Addr{}, false
	}
	ip := netip.AddrFrom4([4]byte{127, 0, 0, byte(2 + index%250)})
	if ip == target.Addr() {
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return ip, true
}

// conn is a connection. The file is there for the runtime's poller, which knows
// deadlines.
type conn struct {
	*os.File
	dialer *dialer
}

var (
	_ net.Conn     = conn{}
	_ syscall.Conn = conn{}
)

func (c conn) LocalAddr() net.Addr  { return c.dialer.local }
func (c conn) RemoteAddr() net.Addr { return c.dialer.remote }

// dial opens a connection and leaves the deadline set on it.
func (d *dialer) dial(deadline time.Time) (net.Conn, error) {
	for again := 0; ; again++ {
		c, err := d.dialOnce(deadline)
		if err == nil {
			return c, nil
		}
		// As net.Dialer does: the kernel may say so of a port that another thread
		// was quicker to take. Nothing was sent yet.
		if errors.Is(err, unix.EADDRNOTAVAIL) && again < 2 {
			continue
		}
		return nil, fmt.Errorf("connect to %s: %w", d.name, err)
	}
}

func (d *dialer) dialOnce(deadline time.Time) (net.Conn, error) {
	fd, err := unix.Socket(d.family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	err = d.begin(fd)
	if err != nil && err != unix.EALREADY {
		unix.Close(fd)
		return nil, err
	}
	// From here on the poller knows the socket.
	f := os.NewFile(uintptr(fd), d.name)
	e := f.SetDeadline(deadline)
	if e == nil && err == unix.EALREADY {
		e = d.await(f)
	}
	if e == nil && d.source == nil {
		e = d.refuseItself(fd)
	}
	if e != nil {
		f.Close()
		return nil, e
	}
	return conn{f, d}, nil
}

// begin sets a socket up and connects it. EALREADY says that this takes time.
func (d *dialer) begin(fd int) error {
	// A request goes out at once, also where it takes more than one segment.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if d.source != nil {
		// The port is chosen at connect, where it needs to be free for this target
		// only (ip(7)).
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		if err := unix.Bind(fd, d.source); err != nil {
			return os.NewSyscallError("bind", err)
		}
	}
	err := unix.Connect(fd, d.target)
	if err == unix.EINPROGRESS || err == unix.EINTR {
		// The answer may have come already: connect(2) called again tells the outcome.
		err = unix.Connect(fd, d.target)
	}
	if err == unix.EALREADY {
		return err
	}
	return os.NewSyscallError("connect", err)
}

// await waits for the outcome of a connect.
func (d *dialer) await(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var outcome error
	err = raw.Write(func(fd uintptr) bool {
		outcome = unix.Connect(int(fd), d.target)
		return outcome != unix.EALREADY && outcome != unix.EINTR
	})
	if err == nil {
		err = os.NewSyscallError("connect", outcome)
	}
	return err
}

// refuseItself refuses a connection whose two ends are the same socket. Where nobody
// listens and the kernel chooses the target's address and port for this side too, TCP
// makes one; with any other port it would have refused.
func (d *dialer) refuseItself(fd int) error {
	own, err := unix.Getsockname(fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	switch own := own.(type) {
	case *unix.SockaddrInet4:
		if target := d.target.(*unix.SockaddrInet4); own.Addr == target.Addr && own.Port == target.Port {
			return unix.ECONNREFUSED
		}
	case *unix.SockaddrInet6:
		if target := d.target.(*unix.SockaddrInet6); own.Addr == target.Addr && own.Port == target.Port {
			return unix.ECONNREFUSED
		}
	}
	return nil
}
