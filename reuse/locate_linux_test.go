package reuse

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"overlap/reuse/sockdiag"
)

// TestLocateMany: sockets whose number of packets has several digits are told apart, and those of which more than one page of
// places is needed.
func TestLocateMany(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		for _, ip := range []string{"127.0.0.1", "::1"} {
			for _, n := range []int{27, 60, 2*MaxPlaces/locatorPages + 2} {
				t.Run(fmt.Sprintf("%s/%s/%d", network, ip, n), func(t *testing.T) {
					m := Open(freeAt(t, network, ip), -1)
					defer m.Leave()
					var want []uint64
					for range n {
						if err := m.addHolderLocked(); err != nil {
							t.Fatal(err)
						}
						want = append(want, m.holders[len(m.holders)-1].inode)
					}
					if err := attach(m.holders[0].fd, serveProgram(network, []int{0})); err != nil {
						t.Fatal(err)
					}
					got, err := locate(m.addr)
					if err != nil || !slices.Equal(got, want) {
						t.Errorf("located %v, %v; want %v", got, err, want)
					}
				})
			}
		}
	}
}

// TestLocateInHalves: many sockets are told apart beside packets that others send all the time.
func TestLocateInHalves(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			m := Open(freeAddress(t, network), -1)
			defer m.Leave()
			var want []uint64
			for range 100 {
				if err := m.addHolderLocked(); err != nil {
					t.Fatal(err)
				}
				want = append(want, m.holders[len(m.holders)-1].inode)
			}
			if err := attach(m.holders[0].fd, serveProgram(network, []int{0})); err != nil {
				t.Fatal(err)
			}
			diag, err := sockdiag.Open()
			if err != nil {
				t.Fatal(err)
			}
			defer diag.Close()
			ctx, stop := context.WithCancel(t.Context())
			var clients sync.WaitGroup
			defer clients.Wait()
			defer stop()
			clients.Go(func() {
				for ctx.Err() == nil {
					sendLocator(m.addr, rand.IntN(100))
					time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
				}
			})
			before, err := members(diag, m.addr)
			if err != nil {
				t.Fatal(err)
			}
			for range 10 {
				got, err := locateInHalves(diag, m.addr, before, 100)
				if errors.Is(err, errMoved) {
					continue // a client's packet passed for a late one
				}
				if err != nil || !slices.Equal(got, want) {
					t.Errorf("located %v, %v; want %v", got, err, want)
				}
			}
			stop()
			clients.Wait()
			if got, err := locateInHalves(diag, m.addr, before, 100); err != nil || !slices.Equal(got, want) {
				t.Errorf("without others: located %v, %v; want %v", got, err, want)
			}
			if _, err := locateInHalves(diag, m.addr, before, 101); err == nil {
				t.Error("a place was found that is not there")
			}
		})
	}
}

// TestLocateByCountSeesNoise: one packet of somebody else's, and the count is not believed.
func TestLocateByCountSeesNoise(t *testing.T) {
	a := first(t, resolve(t, "tcp", "127.0.0.1:0"), 3).Address()
	diag, err := sockdiag.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer diag.Close()
	for place := range 3 {
		before, err := members(diag, a)
		if err != nil {
			t.Fatal(err)
		}
		if err := sendLocator(a, place); err != nil {
			t.Fatal(err)
		}
		if _, err := locateByCount(diag, a, before, 3, 0); !errors.Is(err, errNoise) {
			t.Errorf("with one more packet at place %d: %v, want %v", place, err, errNoise)
		}
		if _, err := locateInTurn(diag, a, before, 3); err != nil {
			t.Error(err)
		}
	}
}
