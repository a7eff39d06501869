package reuse

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMigrate: with net.ipv4.tcp_migrate_req the kernel moves what a dying listener held to any
// member of its group, placeholders too. Taking the connections back moves theirs on.
func TestMigrate(t *testing.T) {
	const sysctl = "/proc/sys/net/ipv4/tcp_migrate_req"
	if ours, err := os.Readlink("/proc/self/ns/net"); err != nil {
		t.Skip(err)
	} else if parent, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", os.Getppid())); err != nil || ours == parent {
		t.Skip("needs a network namespace of the test's own: run as root")
	}
	var u unix.Utsname
	var major, minor int
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	if fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); major < 5 || major == 5 && minor < 14 {
		t.Skip("needs Linux 5.14; late 5.10 has the setting, and moves nothing")
	}
	if err := os.WriteFile(sysctl, []byte("1"), 0); err != nil {
		t.Skip(err)
	}
	defer os.WriteFile(sysctl, []byte("0"), 0)
	if !Migrates() {
		t.Fatal("the setting is not seen")
	}
	before := first(t, resolve(t, "tcp", "127.0.0.1:0"), 1)
	old := join(t, before.Address(), 1, 1)
	if err := old.Settle(before.Inodes()); err != nil {
		t.Fatal(err)
	}
	if err := old.Switch(); err != nil {
		t.Fatal(err)
	}
	before.Leave() // its place goes to a placeholder of the old one's, which is needed from now on
	next := &generation{Member: Open(old.Address(), -1), number: 2}
	if _, err := next.Listen(context.Background()); err != nil { // accepts nobody
		t.Fatal(err)
	}
	if err := next.Settle(old.Inodes()); err != nil {
		t.Fatal(err)
	}
	if err := next.Switch(); err != nil {
		t.Fatal(err)
	}
	clients := make([]net.Conn, 30)
	for i := range clients {
		c, err := net.Dial("tcp", old.Address().String())
		if err != nil {
			t.Fatal(err)
		}
		clients[i] = c
	}
	next.crash()
	if err := old.Reclaim(); err != nil {
		t.Fatal(err)
	}
	var reads sync.WaitGroup
	for _, c := range clients {
		reads.Go(func() {
			if n, err := read(c); n != 1 || err != nil {
				t.Errorf("a connection that was moved got %d, %v", n, err)
			}
		})
	}
	reads.Wait()
}
