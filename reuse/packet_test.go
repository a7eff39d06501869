package reuse

import (
	"errors"
	"net"
	"testing"
	"time"
)

// TestPacketConnCloseRead: every way to read ends with net.ErrClosed, what waits and what comes later, while answers
// go out until Close.
func TestPacketConnCloseRead(t *testing.T) {
	open := func() *PacketConn {
		t.Helper()
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		c := NewPacketConn(pc.(*net.UDPConn))
		t.Cleanup(func() { c.Close() })
		return c
	}
	c, peer := open(), open()
	buf := make([]byte, 16)
	for name, read := range map[string]func() error{
		"Read":                  func() error { _, err := c.Read(buf); return err },
		"ReadFrom":              func() error { _, _, err := c.ReadFrom(buf); return err },
		"ReadFromUDP":           func() error { _, _, err := c.ReadFromUDP(buf); return err },
		"ReadFromUDPAddrPort":   func() error { _, _, err := c.ReadFromUDPAddrPort(buf); return err },
		"ReadMsgUDP":            func() error { _, _, _, _, err := c.ReadMsgUDP(buf, nil); return err },
		"ReadMsgUDPAddrPort":    func() error { _, _, _, _, err := c.ReadMsgUDPAddrPort(buf, nil); return err },
		"SyscallConn's RawConn": func() error { return readRaw(c) },
	} {
		c = open()
		ended := make(chan error, 1)
		go func() { ended <- read() }()
		select {
		case err := <-ended:
			t.Fatalf("%s returns %v", name, err)
		case <-time.After(10 * time.Millisecond):
		}
		c.CloseRead()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("a waiting %s ended with %v", name, err)
		}
		if err := errors.Join(c.SetReadDeadline(time.Time{}), c.SetDeadline(time.Now().Add(time.Minute))); err != nil {
			t.Error(err)
		}
		if _, err := peer.WriteTo([]byte("late"), c.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		if err := read(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a later %s: %v", name, err)
		}
		if _, err := c.WriteTo([]byte("owed"), peer.LocalAddr()); err != nil {
			t.Errorf("after CloseRead: %v", err)
		}
		peer.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, _, err := peer.ReadFrom(buf); err != nil || string(buf[:n]) != "owed" {
			t.Errorf("the answer is %q, %v", buf[:n], err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if _, err := c.WriteTo([]byte("x"), peer.LocalAddr()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a write after Close: %v", err)
		}
	}
	// An expired deadline of the caller's is one.
	c = open()
	c.SetReadDeadline(time.Now())
	if _, _, err := c.ReadFrom(buf); errors.Is(err, net.ErrClosed) || err == nil {
		t.Errorf("after a deadline: %v", err)
	}
}

func readRaw(c *PacketConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(uintptr) bool { return false })
}
