package reuse

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"
	"time"
)

// TestLocateHidden: sockets that are hidden and still open, as those of a program that takes its
// time to end, are not in the way of those that come.
func TestLocateHidden(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			a := freeAddress(t, network)
			members := make([]*Member, 3)
			for i := range members {
				members[i] = Open(a, -1)
				defer members[i].Leave()
				if err := members[i].Anchor(); err != nil {
					t.Fatal(err)
				}
			}
			if err := hide(members[0].holders[0].fd); err != nil {
				t.Fatal(err)
			}
			want := 3
			if network == "udp" {
				want = 2
			}
			places, err := locate(a)
			if err != nil || len(places) != want {
				t.Errorf("places %v, %v; want %d", places, err, want)
			}
			if visible, hidden, err := population(a); err != nil || visible != 2 || hidden != want-2 {
				t.Errorf("population %d and %d, %v; want 2 and %d", visible, hidden, err, want-2)
			}
		})
	}
}

// freeAddress is one that nobody uses now.
func freeAddress(t *testing.T, network string) Address {
	t.Helper()
	return freeAt(t, network, "127.0.0.1")
}

// freeAt is an address of the given IP where nobody is.
func freeAt(t *testing.T, network, ip string) Address {
	t.Helper()
	var at net.Addr
	if network == "udp" {
		pc, err := net.ListenPacket("udp", net.JoinHostPort(ip, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		at = pc.LocalAddr()
	} else {
		ln, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		at = ln.Addr()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	a, err := ParseAddress(ctx, network, at.String())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestJoinBesideHidden: who comes while all that is left of the old generation is hidden has a group of its own; who
// came a moment earlier is in theirs. Both serve their clients, and a third one takes over from them.
func TestJoinBesideHidden(t *testing.T) {
	for name, anchored := range map[string]bool{"group of its own": false, "their group": true} {
		t.Run(name, func(t *testing.T) {
			old := first(t, resolve(t, "tcp", "127.0.0.1:0"), 2)
			at := old.Address()
			next := Open(at, -1)
			defer next.Leave()
			if anchored {
				if err := next.Anchor(); err != nil {
					t.Fatal(err)
				}
			}
			for _, s := range old.sockets {
				if err := s.control(hide); err != nil {
					t.Fatal(err)
				}
			}
			if !anchored {
				if err := next.Anchor(); err != nil {
					t.Fatal(err)
				}
			}
			second := joinWith(t, next, 2, 1)
			// Who steers nothing gets what he asks for at some place by chance.
			for range 20 {
				if array, err := locate(at); err != nil || slices.Index(array, next.holders[0].inode) < 0 || slices.Index(array, second.Inodes()[0]) < 0 ||
					len(array) > 2 != anchored {
					t.Fatalf("places %v, %v", array, err)
				}
			}
			if err := errors.Join(second.Settle(nil), second.Switch()); err != nil {
				t.Fatal(err)
			}
			mustLand(t, at, 2)
			if err := second.Reserve(); err != nil {
				t.Fatal(err)
			}
			third := join(t, at, 3, 1)
			mustLand(t, at, 2)
			second.Yield()
			if err := third.Settle(second.Inodes()); err != nil {
				t.Fatal(err)
			}
			if err := third.Switch(); err != nil {
				t.Fatal(err)
			}
			mustLand(t, at, 3)
			second.Leave()
			old.Leave()
			mustLand(t, at, 3)
		})
	}
}
