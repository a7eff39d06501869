package reuse

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"overlap/reuse/sockdiag"
)

// TestProbeLeavesNothing: a probe that closes first leaves no socket of the server behind, though the gate drops
// packets with the usual hop limit. The control closes as everybody does.
func TestProbeLeavesNothing(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		m := Open(resolve(t, "tcp", addr), -1)
		defer m.Leave()
		ln, err := m.Listen(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					io.Copy(io.Discard, c)
					time.Sleep(20 * time.Millisecond) // after the client has closed
					c.Close()
				}()
			}
		}()
		if err := m.Settle(nil); err != nil {
			t.Fatal(err)
		}
		probe := func(close func(*probeConn)) (left bool) {
			c, err := m.DialProbe(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			from := c.LocalAddr().(*net.TCPAddr).Port
			close(c.(*probeConn))
			diag, err := sockdiag.Open()
			if err != nil {
				t.Fatal(err)
			}
			defer diag.Close()
			for until := time.Now().Add(2 * time.Second); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
				found, err := diag.Connections(m.Address().AddrPort.Port())
				if err != nil {
					t.Fatal(err)
				}
				left = slices.ContainsFunc(found, func(s sockdiag.Socket) bool { return int(s.Remote.Port()) == from })
				if !left {
					break
				}
			}
			return left
		}
		if probe(func(c *probeConn) { c.Close() }) {
			t.Errorf("%s: something is left of a probe", addr)
		}
		if !probe(func(c *probeConn) { c.Conn.Close() }) {
			t.Errorf("%s: control: nothing is left of a connection that is closed at once", addr)
		}
	}
}

// TestProbeCloseEndsRead: as of any connection, though the server says nothing.
func TestProbeCloseEndsRead(t *testing.T) {
	defer func(before time.Duration) { probeLinger = before }(probeLinger)
	probeLinger = time.Hour // a read that does not end runs into the test's time-out
	m := Open(resolve(t, "tcp", "127.0.0.1:0"), -1)
	defer m.Leave()
	if _, err := m.Listen(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := m.Settle(nil); err != nil {
		t.Fatal(err)
	}
	c, err := m.DialProbe(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, c)
		read <- err
	}()
	time.Sleep(20 * time.Millisecond)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := <-read; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the read ended with %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if err := c.Close(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}
