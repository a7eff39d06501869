package sockdiag

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T) *Conn {
	t.Helper()
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// eventually waits for what the kernel does by itself, such as ending a
// handshake on loopback.
func eventually(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !happened(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen: %s", what)
		}
	}
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func listen(t *testing.T, network, address string) (*net.TCPListener, uint16) {
	t.Helper()
	config := net.ListenConfig{}
	config.SetMultipathTCP(false)
	ln, err := config.Listen(t.Context(), network, address)
	if err != nil && strings.Contains(address, ":") && strings.HasPrefix(address, "[") {
		t.Skipf("no IPv6 here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.(*net.TCPListener), uint16(ln.Addr().(*net.TCPAddr).Port)
}

func dial(t *testing.T, network string, address net.Addr) net.Conn {
	t.Helper()
	c, err := net.Dial(network, address.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// of leaves out what other programs have on the same port of another address.
func of(ln net.Listener, found []Socket) []Socket {
	local := ln.Addr().(*net.TCPAddr).AddrPort()
	return slices.DeleteFunc(found, func(s Socket) bool {
		address := s.Local.Addr().Unmap()
		return s.Local.Port() == local.Port() && address != local.Addr().Unmap() && !local.Addr().IsUnspecified()
	})
}

func control(t *testing.T, c syscall.Conn, do func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := errors.Join(raw.Control(func(fd uintptr) { failed = do(int(fd)) }), failed); err != nil {
		t.Fatal(err)
	}
}

func inodeOf(t *testing.T, c syscall.Conn) uint64 {
	t.Helper()
	var stat unix.Stat_t
	control(t, c, func(fd int) error { return unix.Fstat(fd, &stat) })
	return stat.Ino
}

// TestBound: sockets that are bound and neither listen nor are connected, as their binds made them.
func TestBound(t *testing.T) {
	c := open(t)
	for _, tt := range []struct {
		family int
		v6only int
		local  string
	}{{unix.AF_INET, 0, "127.0.0.1"}, {unix.AF_INET6, 0, "::"}, {unix.AF_INET6, 1, "::"}} {
		fd := must[int](t)(unix.Socket(tt.family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
		defer unix.Close(fd)
		var name unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
		if tt.family == unix.AF_INET6 {
			name = &unix.SockaddrInet6{}
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, tt.v6only); err != nil {
				t.Fatal(err)
			}
		}
		var st unix.Stat_t
		if err := errors.Join(unix.Bind(fd, name), unix.Fstat(fd, &st)); err != nil {
			t.Fatal(err)
		}
		find := func() []Socket {
			all := must[[]Socket](t)(c.Bound())
			return slices.DeleteFunc(all, func(s Socket) bool { return s.Inode != st.Ino })
		}
		found := find()
		if len(found) == 0 && tt.family == unix.AF_INET {
			t.Skip("the kernel shows no bound sockets: it takes Linux 6.8")
		}
		if len(found) != 1 || found[0].Local.Addr().String() != tt.local || found[0].Local.Port() == 0 || found[0].V6Only != (tt.v6only == 1) ||
			int(found[0].Family) != tt.family || found[0].State != StateClosed || found[0].UID != uint32(os.Getuid()) {
			t.Errorf("%+v: found %+v", tt, found)
		}
		if err := unix.Listen(fd, 1); err != nil {
			t.Fatal(err)
		}
		if found := find(); len(found) != 0 {
			t.Errorf("%+v: it listens, and is found as %+v", tt, found)
		}
	}
}

func TestListeners(t *testing.T) {
	c := open(t)
	for _, tt := range []struct {
		network, address string
		local            string
		v6only           bool
	}{
		{"tcp4", "127.0.0.1:0", "127.0.0.1", false},
		{"tcp4", "0.0.0.0:0", "0.0.0.0", false},
		{"tcp6", "[::1]:0", "::1", true},
		{"tcp6", "[::]:0", "::", true},
		{"tcp", "[::]:0", "::", false},
	} {
		t.Run(tt.network+tt.address, func(t *testing.T) {
			ln, port := listen(t, tt.network, tt.address)
			other, _ := listen(t, "tcp4", "127.0.0.1:0")
			found := must[[]Socket](t)(c.Listeners(port))
			found = slices.DeleteFunc(found, func(s Socket) bool { return s.Inode != inodeOf(t, ln) && s.Local.Port() == port })
			if len(found) != 1 {
				t.Fatalf("found %+v, want one listener", found)
			}
			got := found[0]
			want := netip.AddrPortFrom(netip.MustParseAddr(tt.local), port)
			if got.Inode != inodeOf(t, ln) || got.Local != want || got.State != StateListen || got.V6Only != tt.v6only {
				t.Errorf("got %+v", got)
			}
			if got.Protocol != unix.IPPROTO_TCP || got.UID != uint32(os.Geteuid()) || got.Cookie == 0 || got.WQueue == 0 {
				t.Errorf("got %+v", got)
			}
			all := must[[]Socket](t)(c.Listeners(0))
			for _, inode := range []uint64{got.Inode, inodeOf(t, other)} {
				if !slices.ContainsFunc(all, func(s Socket) bool { return s.Inode == inode }) {
					t.Errorf("port 0 does not show socket %d", inode)
				}
			}
		})
	}
}

func TestListenerQueue(t *testing.T) {
	c := open(t)
	ln, port := listen(t, "tcp4", "127.0.0.1:0")
	for range 3 {
		dial(t, "tcp", ln.Addr())
	}
	eventually(t, "3 connections in the queue", func() bool {
		found := of(ln, must[[]Socket](t)(c.Listeners(port)))
		return len(found) == 1 && found[0].RQueue == 3
	})
	queued := of(ln, must[[]Socket](t)(c.Connections(port)))
	if len(queued) != 3 || queued[0].Inode != 0 || queued[0].State != StateEstablished {
		t.Errorf("connections in the queue: %+v", queued)
	}
}

// Clients are shown too: their local port is asked for as well as a server's.
func TestConnections(t *testing.T) {
	c := open(t)
	ln, port := listen(t, "tcp4", "127.0.0.1:0")
	client := dial(t, "tcp", ln.Addr())
	server := must[*net.TCPConn](t)(ln.AcceptTCP())
	defer server.Close()

	found := of(ln, must[[]Socket](t)(c.Connections(port)))
	if len(found) != 1 || found[0].Inode != inodeOf(t, server) || found[0].Remote.String() != client.LocalAddr().String() {
		t.Fatalf("found %+v", found)
	}
	inode := inodeOf(t, client.(*net.TCPConn))
	found = must[[]Socket](t)(c.Connections(found[0].Remote.Port()))
	if !slices.ContainsFunc(found, func(s Socket) bool { return s.Inode == inode }) {
		t.Fatalf("found %+v", found)
	}
}

// A closed connection whose client has not closed is a remnant that the kernel
// calls FIN_WAIT2; nobody serves it any more.
func TestConnectionsWithoutRemnants(t *testing.T) {
	c := open(t)
	ln, port := listen(t, "tcp4", "127.0.0.1:0")
	dial(t, "tcp", ln.Addr())
	must[*net.TCPConn](t)(ln.AcceptTCP()).Close()
	eventually(t, "the kernel shows the remnant", func() bool {
		found := of(ln, must[[]Socket](t)(c.sockets("list", unix.IPPROTO_TCP, 1<<StateFinWait2, port)))
		return len(found) == 1 && found[0].timer == timerTimeWait
	})
	if found := of(ln, must[[]Socket](t)(c.Connections(port))); len(found) != 0 {
		t.Errorf("found %+v", found)
	}
}

// TCP_DEFER_ACCEPT keeps a handshake half-open until data comes.
func TestHalfOpen(t *testing.T) {
	for _, tt := range []struct{ network, address, dial string }{
		{"tcp4", "127.0.0.1:0", "127.0.0.1"},
		{"tcp6", "[::1]:0", "::1"},
		{"tcp", "[::]:0", "127.0.0.1"},
	} {
		t.Run(tt.network+tt.address, func(t *testing.T) {
			c := open(t)
			ln, port := listen(t, tt.network, tt.address)
			control(t, ln, func(fd int) error {
				return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 60)
			})
			client := dial(t, "tcp", &net.TCPAddr{IP: net.ParseIP(tt.dial), Port: int(port)})
			var found []Socket
			eventually(t, "the handshake is half-open", func() bool {
				found = of(ln, must[[]Socket](t)(c.HalfOpen(port)))
				return len(found) == 1
			})
			remote := netip.AddrPortFrom(found[0].Remote.Addr().Unmap(), found[0].Remote.Port())
			if remote.String() != client.LocalAddr().String() || found[0].Cookie == 0 || found[0].State != StateSynRecv {
				t.Errorf("found %+v", found)
			}
			again := of(ln, must[[]Socket](t)(c.HalfOpen(port)))
			if len(again) != 1 || again[0].Cookie != found[0].Cookie {
				t.Errorf("then %+v", again)
			}
			if others := of(ln, must[[]Socket](t)(c.Connections(port))); len(others) != 0 {
				t.Errorf("half-open and yet a connection: %+v", others)
			}
			// With data, the same connection is established under its cookie.
			if _, err := client.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the connection is established", func() bool {
				established := of(ln, must[[]Socket](t)(c.Connections(port)))
				return len(established) == 1 && established[0].Cookie == found[0].Cookie
			})
		})
	}
}

func TestDatagrams(t *testing.T) {
	c := open(t)
	pc := must[net.PacketConn](t)(net.ListenPacket("udp4", "127.0.0.1:0"))
	defer pc.Close()
	port := uint16(pc.LocalAddr().(*net.UDPAddr).Port)
	inode := inodeOf(t, pc.(*net.UDPConn))
	state := func() Socket {
		found := slices.DeleteFunc(must[[]Socket](t)(c.Datagrams(port)), func(s Socket) bool { return s.Inode != inode })
		if len(found) != 1 || found[0].State != StateClosed || found[0].Local.Port() != port {
			t.Fatalf("found %+v", found)
		}
		return found[0]
	}
	if got := state(); got.RQueue != 0 || got.Drops != 0 {
		t.Fatalf("at first %+v", got)
	}
	client := dial(t, "udp", pc.LocalAddr())
	send := func(b []byte) {
		// A full connection table of the host refuses datagrams for a while.
		eventually(t, "a datagram is sent", func() bool { _, err := client.Write(b); return err == nil })
	}
	send(nil) // an empty datagram is one too
	eventually(t, "the empty datagram waits", func() bool { return state().RQueue > 0 })

	if err := pc.(*net.UDPConn).SetReadBuffer(1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a datagram is dropped", func() bool { send(make([]byte, 1000)); return state().Drops > 0 })

	local := uint16(client.LocalAddr().(*net.UDPAddr).Port)
	connected := must[[]Socket](t)(c.Datagrams(local))
	if !slices.ContainsFunc(connected, func(s Socket) bool {
		return s.Inode == inodeOf(t, client.(*net.UDPConn)) && s.State == StateEstablished
	}) {
		t.Errorf("connected: %+v", connected)
	}
}

func TestUnix(t *testing.T) {
	c := open(t)
	path := filepath.Join(t.TempDir(), "s")
	ln := must[net.Listener](t)(net.Listen("unix", path))
	inode := inodeOf(t, ln.(*net.UnixListener))
	dial(t, "unix", ln.Addr())
	dial(t, "unix", ln.Addr())

	got := must[UnixSocket](t)(c.Unix(inode))
	var file unix.Stat_t
	if err := unix.Stat(path, &file); err != nil {
		t.Fatal(err)
	}
	if got.Inode != inode || got.Name != path || got.State != StateListen || got.Type != unix.SOCK_STREAM || got.RQueue != 2 || got.Cookie == 0 {
		t.Errorf("got %+v", got)
	}
	if got.FileInode == 0 {
		t.Errorf("no file inode: %+v, the file's is %d", got, file.Ino)
	}
	all := must[[]UnixSocket](t)(c.UnixListeners())
	if !slices.Contains(all, got) {
		t.Errorf("%+v is not in %+v", got, all)
	}
	ln.Close()
	if _, err := c.Unix(inode); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after close: %v", err)
	}
	must[[]Socket](t)(c.Listeners(1)) // it is of use after an error
}

func TestOwners(t *testing.T) {
	ln, _ := listen(t, "tcp4", "127.0.0.1:0")
	inode := inodeOf(t, ln)
	owners := must[map[uint64][]Owner](t)(Owners(inode, 1<<40))
	if len(owners) != 1 || len(owners[inode]) != 1 {
		t.Fatalf("owners %v", owners)
	}
	var fd int
	control(t, ln, func(n int) error { fd = n; return nil })
	owner := owners[inode][0]
	if owner.PID != os.Getpid() || owner.FD != fd || owner.Command == "" {
		t.Errorf("owner %+v", owner)
	}
	held := must[[]uint64](t)(Inodes(os.Getpid()))
	if !slices.Contains(held, inode) || !slices.IsSorted(held) {
		t.Errorf("inodes %v", held)
	}
	if none := must[map[uint64][]Owner](t)(Owners()); len(none) != 0 {
		t.Errorf("owners of nothing: %v", none)
	}
	if _, err := Inodes(1 << 30); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no process: %v", err)
	}
}

func TestSocketInode(t *testing.T) {
	for link, want := range map[string]uint64{"socket:[123]": 123, "pipe:[123]": 0, "socket:[x]": 0, "socket:[1": 0, "/tmp/a": 0} {
		if got, ok := socketInode(link); got != want || ok != (want != 0) {
			t.Errorf("socketInode(%q) = %d, %v", link, got, ok)
		}
	}
}

func TestClosed(t *testing.T) {
	c := open(t)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Listeners(0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after close: %v", err)
	}
	if err := c.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("second close: %v", err)
	}
}

// What the kernel marks as inconsistent is asked again, and never passed on. The
// real kernel cannot be made to do it, so it is stood in for.
func TestInterruptedDump(t *testing.T) {
	for _, tt := range []struct {
		interruptions int
		asked         int
		err           error
	}{{0, 1, nil}, {2, 3, nil}, {1000, dumpAttempts, ErrInterrupted}} {
		asked := 0
		c := &Conn{netlink: nltest.Dial(func(requests []netlink.Message) ([]netlink.Message, error) {
			reply := netlink.Message{
				Header: netlink.Header{Sequence: requests[0].Header.Sequence, PID: nltest.PID},
				Data:   message(),
			}
			if asked++; asked <= tt.interruptions {
				reply.Header.Flags |= netlink.DumpInterrupted
			}
			return []netlink.Message{reply}, nil
		})}
		messages, err := c.dump(inetRequest(FamilyIPv4, unix.IPPROTO_TCP, 1<<StateListen, 0))
		if !errors.Is(err, tt.err) || asked != tt.asked || (err == nil) != (len(messages) == 1) {
			t.Errorf("%d interruptions: %d messages, %v, asked %d times", tt.interruptions, len(messages), err, asked)
		}
		c.Close()
	}
}

// The port filter is the kernel's: the cost of asking does not grow with the
// listeners of other ports.
func BenchmarkListeners(b *testing.B) {
	c, err := Open()
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	var port uint16
	for range 500 {
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer ln.Close()
		port = uint16(ln.Addr().(*net.TCPAddr).Port)
	}
	for _, asked := range []uint16{port, 0} {
		b.Run(fmt.Sprintf("filtered=%v", asked != 0), func(b *testing.B) {
			for b.Loop() {
				if _, err := c.Listeners(asked); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
