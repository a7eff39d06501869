package reuse

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"
)

// TestAwaitAccepted: a connection that nobody has accepted is waited for.
func TestAwaitAccepted(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::]:0"} {
		m := Open(resolve(t, "tcp", addr), -1)
		defer m.Leave()
		ln, err := m.Listen(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(m.Settle(nil), m.Switch()); err != nil {
			t.Fatal(err)
		}
		if err := AwaitAccepted(t.Context(), m); err != nil {
			t.Errorf("with nobody connected: %v", err)
		}
		c, err := net.Dial("tcp", m.Address().Local().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := AwaitAccepted(ctx, m); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a connection in the queue: %v", err)
		}
		accepted, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()
		if err := AwaitAccepted(t.Context(), m); err != nil {
			t.Errorf("once it was accepted: %v", err)
		}
	}
}
