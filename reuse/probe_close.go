package reuse

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// probeLinger is how long a probe's connection waits for the server's end of it; tests change it.
var probeLinger = time.Second

// probeDrain is how much it reads meanwhile (bytes).
const probeDrain = 64 << 10

// probeConn is a connection of a probe. It is closed in the background once the server has closed its
// side too. What the kernel answers for a socket that was closed before has the usual hop limit
// (tcp_v4_timewait_ack in net/ipv4/tcp_ipv4.c), which the gate that the server's socket inherited drops:
// its last state, LAST_ACK, would last for minutes, and a later probe from the same port would meet it.
type probeConn struct {
	net.Conn // not a *net.TCPConn, whose WriteTo would go past Read
	closed   atomic.Bool
	reading  sync.RWMutex // held by readers
}

func (c *probeConn) Read(b []byte) (int, error) {
	c.reading.RLock()
	defer c.reading.RUnlock()
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	n, err := c.Conn.Read(b)
	if err != nil && c.closed.Load() {
		err = net.ErrClosed
	}
	return n, err
}

// SetDeadline fails on a closed one, whose deadline is its own.
func (c *probeConn) SetDeadline(t time.Time) error {
	if c.closed.Load() {
		return net.ErrClosed
	}
	return c.Conn.SetDeadline(t)
}

// SetReadDeadline fails on a closed one, as SetDeadline.
func (c *probeConn) SetReadDeadline(t time.Time) error {
	if c.closed.Load() {
		return net.ErrClosed
	}
	return c.Conn.SetReadDeadline(t)
}

// CloseWrite sends the end of the stream.
func (c *probeConn) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

// Close ends what reads, sends the end of the stream, and returns.
func (c *probeConn) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	c.Conn.SetDeadline(time.Unix(1, 0))
	c.reading.Lock() // nobody reads any more
	defer c.reading.Unlock()
	if c.CloseWrite() != nil {
		return c.Conn.Close() // it is over already
	}
	c.Conn.SetReadDeadline(time.Now().Add(probeLinger))
	go func() {
		io.CopyN(io.Discard, c.Conn, probeDrain)
		c.Conn.Close()
	}()
	return nil
}
