package reuse

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"overlap/reuse/sockdiag"
)

// backlogUntil waits for what the kernel does by itself.
func backlogUntil(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !happened(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen: %s", what)
		}
	}
}

func backlogListen(t *testing.T, network, address string) *net.TCPListener {
	t.Helper()
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	ln, err := config.Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.(*net.TCPListener)
}

func backlogDial(t *testing.T, network string, addr net.Addr) net.Conn {
	t.Helper()
	c, err := net.DialTimeout(network, addr.String(), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func backlogDo(t *testing.T, c syscall.Conn, do func(fd int) error) {
	t.Helper()
	if err := backlogControl(c, do); err != nil {
		t.Fatal(err)
	}
}

func backlogLen(t *testing.T, q Queue) int {
	t.Helper()
	n, known, err := q.Len()
	if err != nil || !known {
		t.Fatalf("queue %T: known %v, %v", q, known, err)
	}
	return n
}

func backlogInode(t *testing.T, c syscall.Conn) uint64 {
	t.Helper()
	inode, err := unixInode(c, "")
	if err != nil {
		t.Fatal(err)
	}
	return inode
}

// backlogQueue is a TCP listener's.
func backlogQueue(t *testing.T, ln *net.TCPListener) Queue {
	t.Helper()
	return InodeQueue("tcp", uint16(ln.Addr().(*net.TCPAddr).Port), backlogInode(t, ln))
}

func TestBacklogQueueTCP(t *testing.T) {
	ln := backlogListen(t, "tcp4", "127.0.0.1:0")
	q := backlogQueue(t, ln)
	for want := range 3 {
		backlogUntil(t, fmt.Sprintf("it holds %d", want), func() bool { return backlogLen(t, q) == want })
		backlogDial(t, "tcp", ln.Addr())
	}
	ln.Close()
	if n, known, err := q.Len(); n != 0 || known || err != nil {
		t.Errorf("after close: %d, %v, %v", n, known, err)
	}
}

func TestBacklogQueueUDP(t *testing.T) {
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	conn := pc.(*net.UDPConn)
	port := uint16(pc.LocalAddr().(*net.UDPAddr).Port)
	client := backlogDial(t, "udp", pc.LocalAddr())
	q := InodeQueue("udp4", port, backlogInode(t, conn))
	if n := backlogLen(t, q); n != 0 {
		t.Fatalf("at first: %d", n)
	}
	for range 2 {
		// Empty ones count. A full connection table of the host refuses them for a while.
		backlogUntil(t, "a datagram is sent", func() bool { _, err := client.Write(nil); return err == nil })
	}
	b := make([]byte, 1)
	for range 2 {
		backlogUntil(t, "a datagram waits", func() bool { return backlogLen(t, q) > 0 })
		pc.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, _, err := pc.ReadFrom(b); err != nil {
			t.Fatal(err)
		}
	}
	if n := backlogLen(t, q); n != 0 {
		t.Errorf("after reading all: %d", n)
	}
	if hasHandshakes(q) {
		t.Error("UDP has no handshakes")
	}
}

func TestBacklogQueueUnix(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	q := InodeQueue("unix", 0, backlogInode(t, ln.(*net.UnixListener)))
	for want := range 3 {
		if n := backlogLen(t, q); n != want {
			t.Errorf("%d, want %d", n, want)
		}
		backlogDial(t, "unix", ln.Addr())
	}
	if hasHandshakes(q) {
		t.Error("unix has no handshakes")
	}
	ln.Close()
	if _, known, err := q.Len(); known || err != nil {
		t.Errorf("after close: %v, %v", known, err)
	}
}

func TestBacklogNothing(t *testing.T) {
	ln := backlogListen(t, "tcp4", "127.0.0.1:0")
	if err := AwaitBacklog(t.Context(), uint16(ln.Addr().(*net.TCPAddr).Port), backlogQueue(t, ln)); err != nil {
		t.Error(err)
	}
}

// The ways a handshake is kept half-open, and ended.
type backlogHold struct {
	begin func(t *testing.T, ln *net.TCPListener)
	end   func(t *testing.T, ln *net.TCPListener)
}

// TCP_DEFER_ACCEPT keeps a handshake half-open until data comes.
func backlogDeferAccept(t *testing.T, ln *net.TCPListener) {
	t.Helper()
	backlogDo(t, ln, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 60)
	})
}

func backlogNothing(*testing.T, *net.TCPListener) {}

func TestBacklogHalfOpen(t *testing.T) {
	hold := backlogHold{begin: backlogDeferAccept, end: backlogNothing}
	t.Run("IPv4", func(t *testing.T) { backlogBothProofs(t, "tcp4", "127.0.0.1:0", hold) })
	t.Run("IPv4 of a dual-stack listener", func(t *testing.T) { backlogBothProofs(t, "tcp", ":0", hold) })
	t.Run("IPv6", func(t *testing.T) {
		backlogNeedsIPv6(t)
		backlogBothProofs(t, "tcp6", "[::1]:0", hold)
	})
}

// backlogBothProofs is backlogHeld by the listener's references alone, by the list of half-open
// connections alone, and by both.
func backlogBothProofs(t *testing.T, network, address string, hold backlogHold) {
	t.Run("references", func(t *testing.T) { backlogHeld(t, network, address, hold, true, false) })
	t.Run("list", func(t *testing.T) { backlogHeld(t, network, address, hold, false, true) })
	t.Run("both", func(t *testing.T) { backlogHeld(t, network, address, hold, true, true) })
}

func backlogNeedsIPv6(t *testing.T) {
	t.Helper()
	c, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Skipf("no IPv6 here: %v", err)
	}
	c.Close()
}

// backlogSpy tells when the wait has taken its set, or read the references, and goes on asking.
type backlogSpy struct {
	*sockdiag.Conn
	asked   int
	waiting chan struct{}
	once    sync.Once
	blind   bool // the list of half-open connections shows one forever
}

func (s *backlogSpy) ask() {
	if s.asked++; s.asked > 2*backlogConfirmations {
		s.once.Do(func() { close(s.waiting) })
	}
}

func (s *backlogSpy) HalfOpen(port uint16, families ...uint8) ([]sockdiag.Socket, error) {
	if s.blind {
		return []sockdiag.Socket{{Cookie: 1, Local: netip.AddrPortFrom(netip.IPv4Unspecified(), port)}}, nil
	}
	s.ask()
	return s.Conn.HalfOpen(port, families...)
}

func (s *backlogSpy) read(family uint8, inodes []uint64) (map[uint64]sockdiag.Reference, error) {
	s.ask()
	return sockdiag.References(family, inodes)
}

// backlogHeld holds a handshake half-open while the proof is asked for. The
// negative control is in it: who reads the queue first, and then waits for
// half-open connections, sees nothing at either time and closes on a client.
func backlogHeld(t *testing.T, network, address string, hold backlogHold, references, list bool) {
	ln := backlogListen(t, network, address)
	port := uint16(ln.Addr().(*net.TCPAddr).Port)
	hold.begin(t, ln)
	queue := backlogQueue(t, ln)
	dialed := "tcp4"
	if network == "tcp6" {
		dialed = "tcp6"
	}
	client := backlogDial(t, dialed, &net.TCPAddr{IP: backlogLoopback(network), Port: int(port)})
	local := client.LocalAddr().(*net.TCPAddr).AddrPort()

	diag, err := sockdiag.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer diag.Close()
	halfOpen := func() bool {
		found, err := diag.HalfOpen(port)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range found {
			if s.Remote.Port() == local.Port() && s.Remote.Addr().Unmap() == local.Addr().Unmap() {
				return true
			}
		}
		return false
	}
	backlogUntil(t, "the handshake is half-open", halfOpen)

	queueFirst := backlogLen(t, queue)

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	spy := &backlogSpy{waiting: make(chan struct{}), blind: !list}
	wait := backlogWait{ctx: ctx, sleep: backlogSleep, open: func() (_ halfOpener, err error) {
		spy.Conn, err = sockdiag.Open()
		return spy, err
	}}
	if references {
		wait.references = referencesOf([]Queue{queue})
		wait.references.read = spy.read
	}
	proven := make(chan error, 1)
	go func() { proven <- wait.wait([]uint16{port}, []Queue{queue}) }()
	select {
	case <-spy.waiting: // it holds on to the half-open one
	case err := <-proven:
		t.Fatalf("proven with a half-open connection: %v", err)
	}

	hold.end(t, ln)
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	backlogUntil(t, "the connection is in the queue", func() bool { return backlogLen(t, queue) == 1 })
	backlogUntil(t, "the handshake is not half-open any more", func() bool { return !halfOpen() })
	if queueFirst != 0 {
		t.Errorf("negative control: reading the queue first saw %d connections", queueFirst)
	}
	select {
	case err := <-proven:
		t.Fatalf("proven with a connection in the queue: %v", err)
	default:
	}

	ln.SetDeadline(time.Now().Add(10 * time.Second))
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := <-proven; err != nil {
		t.Errorf("with everything accepted: %v", err)
	}
}

func backlogLoopback(network string) net.IP {
	if network == "tcp6" {
		return net.IPv6loopback
	}
	return net.IPv4(127, 0, 0, 1)
}

// A half-open connection that stays is said when time is up.
func TestBacklogTimeout(t *testing.T) {
	ln := backlogListen(t, "tcp4", "127.0.0.1:0")
	backlogDeferAccept(t, ln)
	backlogDial(t, "tcp", ln.Addr())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := AwaitBacklog(ctx, uint16(ln.Addr().(*net.TCPAddr).Port), backlogQueue(t, ln))
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrNoProof) {
		t.Errorf("got %v", err)
	}
}

const backlogNamespaceEnv = "OVERLAP_TEST_BACKLOG_NAMESPACE"

func backlogSkip(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("OVERLAP_TEST_REQUIRE") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// TestBacklogNetfilter drops the last ACK where a real network does, on its way to
// the host, in a network namespace of its own.
func TestBacklogNetfilter(t *testing.T) {
	if os.Getenv(backlogNamespaceEnv) != "" {
		backlogInNamespace(t)
		return
	}
	if _, err := exec.LookPath("nft"); err != nil {
		backlogSkip(t, "needs nft: apt-get install nftables (%v)", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := func(flags uintptr) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestBacklogNetfilter$", "-test.v", "-test.count=1")
		cmd.Env = append(os.Environ(), backlogNamespaceEnv+"=1", "GORACE=atexit_sleep_ms=0")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
		if flags&syscall.CLONE_NEWUSER != 0 {
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
		}
		return cmd
	}
	var out strings.Builder
	cmd := child(syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		cmd = child(syscall.CLONE_NEWNET) // as root where user namespaces are off
		cmd.Stdout, cmd.Stderr = &out, &out
		if second := cmd.Start(); second != nil {
			backlogSkip(t, "needs a network namespace: %v; %v", err, second)
		}
	}
	err = cmd.Wait()
	if err != nil {
		t.Errorf("in the namespace: %v\n%s", err, out.String())
	} else if strings.Contains(out.String(), "--- SKIP") {
		t.Skipf("in the namespace:\n%s", out.String())
	}
}

// backlogCookies: a connection that a SYN cookie let in has no reference of the listener, and is no less
// waited for.
func backlogCookies(t *testing.T) {
	const sysctl = "/proc/sys/net/ipv4/tcp_syncookies"
	before, err := os.ReadFile(sysctl)
	if err == nil {
		err = os.WriteFile(sysctl, []byte("2"), 0) // always
	}
	if err != nil {
		backlogSkip(t, "needs SYN cookies: %v", err)
	}
	defer os.WriteFile(sysctl, before, 0)
	ln := backlogListen(t, "tcp4", "127.0.0.1:0")
	queue := backlogQueue(t, ln)
	backlogDial(t, "tcp", ln.Addr())
	backlogUntil(t, "the connection is in the queue", func() bool { return backlogLen(t, queue) == 1 })
	ino, families, err := queue.(listening).listener()
	if err != nil {
		t.Fatal(err)
	}
	if held, err := sockdiag.References(families[0], []uint64{ino}); err != nil || held[ino] != (sockdiag.Reference{Count: 1, Queued: 1}) {
		t.Errorf("the kernel holds %+v, %v: no cookie was used, or it has a reference", held, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	port := uint16(ln.Addr().(*net.TCPAddr).Port)
	if err := AwaitBacklog(ctx, port, queue); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a connection in the queue: %v", err)
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := AwaitBacklog(t.Context(), port, queue); err != nil {
		t.Error(err)
	}
}

func backlogInNamespace(t *testing.T) {
	if err := backlogLoopbackUp(); err != nil {
		t.Fatal(err)
	}
	nft := func(t *testing.T, rules string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			backlogSkip(t, "nft: %v: %s", err, out)
		}
	}
	drop := func(t *testing.T, ln *net.TCPListener) {
		t.Helper()
		nft(t, fmt.Sprintf(`table inet overlap {
			chain input {
				type filter hook input priority 0;
				tcp dport %d tcp flags & (syn|ack) == ack drop
			}
		}
		`, ln.Addr().(*net.TCPAddr).Port))
	}
	pass := func(t *testing.T, _ *net.TCPListener) {
		t.Helper()
		nft(t, "delete table inet overlap\n")
	}
	t.Run("SYN cookies", backlogCookies)
	t.Run("last ACK dropped", func(t *testing.T) {
		backlogBothProofs(t, "tcp4", "127.0.0.1:0", backlogHold{begin: drop, end: pass})
	})
	t.Run("and defer accept", func(t *testing.T) {
		backlogBothProofs(t, "tcp4", "127.0.0.1:0", backlogHold{begin: func(t *testing.T, ln *net.TCPListener) {
			backlogDeferAccept(t, ln)
			drop(t, ln)
		}, end: pass})
	})
	t.Run("IPv6", func(t *testing.T) {
		backlogNeedsIPv6(t)
		backlogBothProofs(t, "tcp6", "[::1]:0", backlogHold{begin: drop, end: pass})
	})
}

func backlogLoopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}
