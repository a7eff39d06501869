package reuse

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// newcomer is a generation that has settled beside the one that serves.
func newcomer(t *testing.T, serving *generation, number, sockets int) *generation {
	t.Helper()
	if err := serving.Reserve(); err != nil {
		t.Fatal(err)
	}
	g := join(t, serving.Address(), number, sockets)
	serving.Yield()
	if err := g.Settle(serving.Inodes()); err != nil {
		t.Fatal(err)
	}
	return g
}

// takeOver is a handover.
func takeOver(t *testing.T, from *generation, number, sockets int) *generation {
	t.Helper()
	g := newcomer(t, from, number, sockets)
	if err := g.Switch(); err != nil {
		t.Fatal(err)
	}
	from.Leave()
	return g
}

// TestCloseOne: a listener that is closed while its generation serves leaves its share to the
// others, and no client waits for the place that it had.
func TestCloseOne(t *testing.T) {
	for _, addr := range allAddresses {
		t.Run(addr, func(t *testing.T) {
			g := first(t, resolve(t, "tcp", addr), 2)
			at := g.Address()
			for number := 2; number < 4; number++ { // the second one's places are not the lowest
				g = takeOver(t, g, number, 3)
			}
			closed := make(chan struct{})
			var clients sync.WaitGroup
			for range 4 {
				clients.Go(func() {
					for {
						// One in the queue of the listener is reset, as by any close.
						if _, again, _ := landOnce("tcp", at.Local().String()); again {
							t.Error("a client was kept waiting")
						}
						select {
						case <-closed:
							return
						default:
						}
					}
				})
			}
			for left := 2; left > 0; left-- {
				if err := g.lns[left].Close(); err != nil {
					t.Error(err)
				}
				for range 20 {
					if n, again, err := landOnce("tcp", at.Local().String()); n != 3 || again || err != nil {
						t.Errorf("with %d left: landed on %d, %v; sent again: %t", left, n, err, again)
					}
				}
				if len(g.places) != left {
					t.Errorf("%d places are known of %d sockets", len(g.places), left)
				}
			}
			close(closed)
			clients.Wait()
			b := takeOver(t, g, 4, 1)
			mustLand(t, at, 4)
			if err := b.lns[0].Close(); err != nil {
				t.Error(err)
			}
			if _, err := land("tcp", at.Local().String()); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("after the last one: %v, want a refusal", err)
			}
		})
	}
}

// TestCloseOneDuringHandover: the newcomer's places stay what they are, and the connections its own.
func TestCloseOneDuringHandover(t *testing.T) {
	a := first(t, resolve(t, "tcp", "127.0.0.1:0"), 3)
	at := a.Address()
	b := newcomer(t, a, 2, 2)
	before := fmt.Sprint(b.places)
	if err := a.lns[0].Close(); err != nil {
		t.Error(err)
	}
	array, err := locate(at)
	if err != nil {
		t.Fatal(err)
	}
	if now := fmt.Sprint(placesOf(array, b.Inodes())); now != before {
		t.Errorf("the newcomer's places %s have become %s", before, now)
	}
	b.Leave()
	if err := a.Reclaim(); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if n, again, err := landOnce("tcp", at.Local().String()); n != 1 || again || err != nil {
			t.Errorf("after the handover that failed: landed on %d, %v; sent again: %t", n, err, again)
		}
	}
	c := newcomer(t, a, 3, 2)
	if err := c.Switch(); err != nil {
		t.Fatal(err)
	}
	if err := a.lns[1].Close(); err != nil { // before it hears of the switch
		t.Error(err)
	}
	mustLand(t, at, 3)
	a.Leave()
	mustLand(t, at, 3)
}

// TestCloseOneWhileHeld: clients that are kept waiting stay so.
func TestCloseOneWhileHeld(t *testing.T) {
	a := first(t, resolve(t, "tcp", "127.0.0.1:0"), 2)
	if err := a.Anchor(); err != nil {
		t.Fatal(err)
	}
	if err := a.Hold(); err != nil {
		t.Fatal(err)
	}
	if err := a.lns[0].Close(); err != nil {
		t.Error(err)
	}
	if c, err := net.DialTimeout("tcp", a.Address().String(), 100*time.Millisecond); err == nil {
		c.Close()
		t.Error("a client got through")
	} else if !os.IsTimeout(err) {
		t.Errorf("a client was not kept waiting: %v", err)
	}
}

// TestCloseOneOfDatagrams: the flows of a packet socket that is closed go to the others.
func TestCloseOneOfDatagrams(t *testing.T) {
	at := resolve(t, "udp", "127.0.0.1:0")
	var serving *Member
	var conns []*PacketConn
	for range 2 {
		m := Open(at, -1)
		defer m.Release()
		defer m.Leave()
		conns = nil
		var before []uint64
		if serving != nil {
			if err := serving.Reserve(); err != nil {
				t.Fatal(err)
			}
			before = serving.Inodes()
		}
		for range 3 {
			pc, err := m.ListenPacket(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, pc)
		}
		if serving != nil {
			serving.Yield()
		}
		if err := m.Settle(before); err != nil {
			t.Fatal(err)
		}
		if err := m.Switch(); err != nil {
			t.Fatal(err)
		}
		if serving != nil {
			serving.Leave()
			serving.Release()
		}
		serving, at = m, m.Address()
	}
	if err := conns[0].Close(); err != nil {
		t.Error(err)
	}
	const flows = 40
	for range flows {
		c, err := net.Dial("udp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("x")); err != nil {
			t.Error(err)
		}
	}
	got := 0
	for _, pc := range conns[1:] {
		pc.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // over the loopback they are there already
		for {
			if _, _, err := pc.ReadFrom(make([]byte, 1)); err != nil {
				break
			}
			got++
		}
	}
	if got != flows {
		t.Errorf("%d of %d datagrams arrived", got, flows)
	}
}
