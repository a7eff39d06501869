package reuse

import (
	"context"
	"net"
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
			if n, err := population(a); err != nil || n != want {
				t.Errorf("population %d, %v; want %d", n, err, want)
			}
		})
	}
}

// freeAddress is one that nobody uses now.
func freeAddress(t *testing.T, network string) Address {
	t.Helper()
	var at net.Addr
	if network == "udp" {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		at = pc.LocalAddr()
	} else {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
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
