package reuse

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"overlap/test/netns"
)

// TestWithout6: a group on [::] that nobody can reach is handed over all the same.
func TestWithout6(t *testing.T) {
	if !netns.Without6(t) {
		return
	}
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			at := wildcard6(t, network)
			if at.Reachable() {
				t.Error("it can be reached")
			}
			if dual := (Address{Network: network, AddrPort: at.AddrPort}); !dual.Reachable() {
				t.Error("IPv4 can't reach a dual-stack socket")
			}
			old := joinOwn(t, at, nil)
			for range 20 {
				if err := old.Reserve(); err != nil {
					t.Fatal(err)
				}
				next := joinOwn(t, at, old)
				if _, err := next.DialProbe(context.Background()); !errors.Is(err, errNoWay) {
					t.Errorf("a probe: %v", err)
				}
				old.Leave()
				old.Release()
				old = next
			}
			// The placeholders that are not needed went with each handover.
			if visible, hidden, err := population(at); err != nil || visible > 4 || hidden > 0 {
				t.Errorf("%d sockets, %d hidden, %v", visible, hidden, err)
			}
		})
	}
}

// TestOtherWay6: a group on [::] that can't be reached at [::1] is, at another address of the machine.
func TestOtherWay6(t *testing.T) {
	if !netns.Without6(t) {
		return
	}
	ip, err := exec.LookPath("ip")
	if err != nil {
		t.Skip("ip is missing: apt-get install iproute2")
	}
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	for _, words := range [][]string{{"add", "fd00::7/128"}, {"del", "::1/128"}} {
		if out, err := exec.Command(ip, "-6", "address", words[0], words[1], "dev", "lo").CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", words, err, out)
		}
	}
	for began := time.Now(); tentative(netip.MustParseAddr("fd00::7")); time.Sleep(time.Millisecond) {
		if time.Since(began) > 20*time.Second {
			t.Fatal("the address is not there")
		}
	}
	at := wildcard6(t, "tcp")
	old := first(t, at, 2)
	if err := old.Reserve(); err != nil {
		t.Fatal(err)
	}
	next := join(t, at, 2, 2)
	old.Yield()
	if err := next.Settle(old.Inodes()); err != nil {
		t.Fatal(err)
	}
	c, err := next.DialProbe(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if n, err := read(c); err != nil || n != 2 {
		t.Errorf("the probe reached %d, %v", n, err)
	}
	through, err := reachable(at)
	if err != nil {
		t.Fatal(err)
	}
	mustLand(t, through, 1)
	if err := next.Switch(); err != nil {
		t.Fatal(err)
	}
	mustLand(t, through, 2)
}

// joinOwn takes over from a member, if there is one.
func joinOwn(t *testing.T, a Address, from *Member) *Member {
	t.Helper()
	m := Open(a, -1)
	t.Cleanup(func() { m.Leave(); m.Release() })
	if err := m.Anchor(); err != nil {
		t.Fatal(err)
	}
	var err error
	if a.Network == "udp" {
		_, err = m.ListenPacket(context.Background())
	} else {
		_, err = m.Listen(context.Background())
	}
	if err != nil {
		t.Fatal(err)
	}
	var serving []uint64
	if from != nil {
		from.Yield()
		serving = from.Inodes()
	}
	if err := m.Settle(serving); err != nil {
		t.Fatal(err)
	}
	if err := m.Switch(); err != nil {
		t.Fatal(err)
	}
	if from != nil {
		from.Recede()
	}
	return m
}

// wildcard6 is all of IPv6 at a port that nobody uses.
func wildcard6(t *testing.T, network string) Address {
	t.Helper()
	four := freeAddress(t, network)
	return Address{Network: network, AddrPort: netip.AddrPortFrom(netip.IPv6Unspecified(), four.AddrPort.Port()), V6Only: true}
}
