package lifecycle

import (
	"context"
	"sync"
	"testing"
)

// TestGuestListensAtOnce: the methods of a Generation are safe for concurrent use, under a launcher too.
func TestGuestListensAtOnce(t *testing.T) {
	g := &Generation{guest: &guest{number: 1}}
	const each = 16
	var all sync.WaitGroup
	for range each {
		all.Go(func() {
			if ln, err := g.Listen(context.Background(), "tcp", "127.0.0.1:0"); err != nil {
				t.Error(err)
			} else {
				t.Cleanup(func() { ln.Close() })
			}
		})
		all.Go(func() {
			if pc, err := g.ListenPacket(context.Background(), "udp", "127.0.0.1:0"); err != nil {
				t.Error(err)
			} else {
				t.Cleanup(func() { pc.Close() })
			}
		})
	}
	all.Wait()
	if lns, packets := len(g.guest.lns.all()), len(g.guest.packets.all()); lns != each || packets != each {
		t.Errorf("%d listeners and %d packet sockets are known, want %d of each", lns, packets, each)
	}
}
