package intercept

import (
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// copies is how many descriptors of this process are the socket.
func copies(t *testing.T, ino uint64) (n int) {
	t.Helper()
	link := "socket:[" + strconv.FormatUint(ino, 10) + "]"
	for _, to := range openDescriptors() {
		if to == link {
			n++
		}
	}
	return n
}

// In Make mode the option is set at bind, on the socket that is bound and no other, and no copy
// stays behind.
func TestMakeModeKeepsUntilBind(t *testing.T) {
	var r record
	address := reserved(t, "udp", "127.0.0.1")
	p := start(t, Options{Mode: Make,
		Bind: func(b Bind) error {
			r.bind(Bind{Network: b.Network, Addr: b.Addr, Inode: b.Inode, LastReach: b.LastReach, V6Only: b.V6Only})
			if b.Socket == nil {
				return nil
			}
			return shareSocket(b.Socket)
		},
		Made: func(*os.File, int, int) error { return nil },
		Keep: func(_, typ int) bool { return typ == unix.SOCK_DGRAM },
	}, nil)
	p.expect(t, "ok", "bind", "udp", address)
	p.expect(t, "ok", "bind", "udp", reserved(t, "udp", "::1"))
	p.expect(t, "EADDRINUSE", "bind", "tcp", reserved(t, "tcp", "127.0.0.1")) // it is not kept
	p.expect(t, "ok", "bind", "udp", "127.0.0.1:0")
	p.expect(t, "nonblock=false cloexec=false reuseport=0", "socket", strconv.Itoa(unix.SOCK_DGRAM))
	binds := r.all()
	if len(binds) != 3 || !binds[0].LastReach || binds[0].Addr != netip.MustParseAddrPort(address) || binds[0].Inode == 0 ||
		!binds[1].LastReach || binds[2].LastReach {
		t.Fatalf("callback got %+v", binds)
	}
	for _, b := range binds {
		if n := copies(t, b.Inode); n != 0 {
			t.Errorf("%d copies of the socket bound to %s are left", n, b.Addr)
		}
	}
	p.tap.kept.mu.Lock()
	left := len(p.tap.kept.fds)
	p.tap.kept.mu.Unlock()
	if left != 1 {
		t.Errorf("%d sockets are kept; want the one that was not bound", left)
	}
	p.end() // and TestMain finds it closed
}

func TestKept(t *testing.T) {
	var k kept
	defer k.close()
	made := func() (fd int, ino uint64) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			t.Fatal(err)
		}
		return fd, st.Ino
	}
	oldest, oldestInode := made()
	k.put(oldest)
	var last int
	var lastInode uint64
	for range maxKept {
		last, lastInode = made()
		k.put(last)
	}
	if n := copies(t, oldestInode); n != 1 || len(k.fds) != maxKept || len(k.order) != maxKept {
		t.Errorf("%d descriptors of the oldest, %d kept", n, len(k.fds))
	}
	if fd := k.take(os.Getpid(), oldest); fd != -1 {
		t.Errorf("the oldest is kept as %d", fd)
	}
	fd := k.take(os.Getpid(), last)
	if fd < 0 || copies(t, lastInode) != 2 {
		t.Fatalf("the newest is kept as %d", fd)
	}
	unix.Close(fd)
	if again := k.take(os.Getpid(), last); again != -1 {
		t.Errorf("the newest is still kept as %d", again)
	}
	for deadline := time.Now().Add(10 * keepTime); ; time.Sleep(keepTime / 20) {
		k.mu.Lock()
		left := len(k.fds)
		k.mu.Unlock()
		if left == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d are kept for good", left)
		}
	}
	k.close()
	k.put(last)
	if n := copies(t, lastInode); n != 1 {
		t.Errorf("something is kept after the end")
	}
}

// A socket that has got its port from the kernel is a client's: nothing keeps it open, and its port taken, once
// the program has closed it.
func TestKeptLetsGoOfClients(t *testing.T) {
	var k kept
	defer k.close()
	held := func(ino uint64) bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		_, ok := k.fds[ino]
		return ok
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		var fds [2]int
		var inos [2]uint64
		for i := range fds {
			fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil {
				t.Fatal(err)
			}
			fds[i], inos[i] = fd, st.Ino
		}
		to := unix.Sockaddr(&unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}})
		if family == unix.AF_INET6 {
			to = &unix.SockaddrInet6{Port: 9, Addr: [16]byte{15: 1}}
		}
		began := time.Now()
		k.put(fds[0])
		k.put(fds[1])
		if err := unix.Connect(fds[1], to); err != nil {
			t.Fatal(err)
		}
		for held(inos[1]) {
			if time.Since(began) > keepTime/2 {
				t.Fatalf("a connected socket is kept for %v", time.Since(began))
			}
			time.Sleep(time.Millisecond)
		}
		if took := time.Since(began); took < keepTime/2 && !held(inos[0]) {
			t.Errorf("a socket without a port is kept for %v only", took)
		}
		unix.Close(fds[0])
		unix.Close(fds[1])
	}
}
