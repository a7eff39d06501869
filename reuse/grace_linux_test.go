package reuse

import (
	"context"
	"testing"

	"overlap/reuse/sockdiag"
)

// countGraces has f called in each grace period, until the test is over.
func countGraces(t *testing.T, f func()) {
	before := kernelGrace
	kernelGrace = func() error {
		f()
		return nil
	}
	t.Cleanup(func() { kernelGrace = before })
}

// TestLeaveAwaitsGrace: hidden sockets are closed only when lookups that found them are over.
func TestLeaveAwaitsGrace(t *testing.T) {
	m := Open(resolve(t, "tcp", "127.0.0.1:0"), -1)
	if _, err := m.Listen(context.Background()); err != nil {
		t.Fatal(err)
	}
	addr := m.Address() // Leave holds the member's lock
	here := func() int {
		visible, hidden, err := population(addr)
		if err != nil {
			t.Error(err)
		}
		return visible + hidden
	}
	var then []int
	countGraces(t, func() { then = append(then, here()) })
	m.Leave()
	if after := here(); len(then) == 0 || then[0] != 1 || after != 0 {
		t.Errorf("in the grace periods there were %v sockets, want 1; afterwards %d", then, after)
	}
}

// TestBacklogAwaitsGrace: what listeners hold is looked at only when what was on its way stands there.
func TestBacklogAwaitsGrace(t *testing.T) {
	graced := false
	countGraces(t, func() { graced = true })
	w := newBacklogWait(t.Context(), []Queue{InodeQueue("tcp4", 80, 7)})
	w.references.read = func(uint8, []uint64) (map[uint64]sockdiag.Reference, error) {
		if !graced {
			t.Error("it was looked at too early")
		}
		return map[uint64]sockdiag.Reference{7: {Count: 1}}, nil
	}
	if err := w.wait([]uint16{80}, []Queue{InodeQueue("tcp4", 80, 7)}); err != nil {
		t.Error(err)
	}
}

// TestYieldAwaitsNoGrace: a newcomer does not wait for the kernel, of whatever network it is.
func TestYieldAwaitsNoGrace(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		m := Open(resolve(t, network, "127.0.0.1:0"), -1)
		defer m.Leave()
		listen := func() (err error) {
			if network == "tcp" {
				_, err = m.Listen(context.Background())
			} else {
				_, err = m.ListenPacket(context.Background())
			}
			return err
		}
		// The port is known from a socket that goes; then the placeholder comes first.
		if err := listen(); err != nil {
			t.Fatal(err)
		}
		next := Open(m.Address(), -1)
		defer next.Leave()
		m.Leave()
		m.Release()
		m = next
		if err := m.Anchor(); err != nil {
			t.Fatal(err)
		}
		if err := listen(); err != nil {
			t.Fatal(err)
		}
		for _, step := range []func() error{func() error { return m.Settle(nil) }, m.Switch, m.Reserve} {
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
		if len(m.front) == 0 {
			t.Fatalf("%s: no placeholder makes room", network)
		}
		countGraces(t, func() { t.Errorf("%s: a grace period in the handover's way", network) })
		m.Yield()
		countGraces(t, func() {})
		if n := len(m.Sockets()); n != 2 {
			t.Errorf("%s: %d sockets are left, want the serving one and a placeholder behind it", network, n)
		}
	}
}
