package httpdrain

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// State of a connection, as the ConnState hook last told it.
const (
	stateNew uint32 = iota
	stateActive
	stateIdle
	stateHijacked
)

const clientPreface = "PRI * HTTP/2.0"

// track is what the drain knows of one connection. The hot path writes state, read
// and mark; everything else belongs to a new connection, a closed one or the drain.
type track struct {
	d   *Drainer
	raw net.Conn // as accepted

	state atomic.Uint32
	read  atomic.Int64 // bytes that net/http has read; one writer at a time
	mark  atomic.Int64 // read, when the connection last became idle
	since atomic.Int64 // nanoseconds after d.epoch from which a grace runs; 0: the drain's start
	tls   atomic.Pointer[tls.Conn]

	counted bool        // read is kept (false for a connection that could not be wrapped)
	sniff   bool        // unencrypted HTTP/2 is on and the preface may still come
	sniffed int         // bytes of the preface seen
	h2c     atomic.Bool // the preface was seen

	prev, next *track // d.mu
	linked     bool   // d.mu

	// Owned by the drain.
	seen      int64
	seenAt    time.Time
	busySince time.Time
	ended     bool // closed by the drain
	h2known   bool
	h2        bool
}

// got notes what a Read returned. Only one goroutine reads at a time, so a load and a
// store do.
func (t *track) got(b []byte) {
	if t.sniff {
		t.sniffPreface(b)
	}
	t.read.Store(t.read.Load() + int64(len(b)))
}

func (t *track) sniffPreface(b []byte) {
	for _, c := range b {
		if c != clientPreface[t.sniffed] {
			t.sniff = false
			return
		}
		if t.sniffed++; t.sniffed == len(clientPreface) {
			t.h2c.Store(true)
			t.sniff = false
			return
		}
	}
}

// closed is called after the connection's Close.
func (t *track) closed() {
	if t.state.Load() == stateHijacked {
		t.d.forget(t)
	}
}

// isHTTP2 is called by the drain, for connections that have left stateNew: the
// handshake is done then, so that ConnectionState does not block.
func (t *track) isHTTP2() bool {
	if !t.h2known {
		t.h2known = true
		if c := t.tls.Load(); c != nil {
			t.h2 = c.ConnectionState().NegotiatedProtocol == "h2"
		} else {
			t.h2 = t.h2c.Load()
		}
	}
	return t.h2
}

// wrapped is a connection whose reads and Close are seen.
type wrapped interface {
	net.Conn
	tracked() *track
}

// tcpConn keeps all that a *net.TCPConn can do, sendfile and splice included.
type tcpConn struct {
	*net.TCPConn
	t track
}

func (c *tcpConn) tracked() *track { return &c.t }

func (c *tcpConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	c.t.got(b[:max(n, 0)])
	return n, err
}

func (c *tcpConn) Close() error {
	err := c.TCPConn.Close()
	c.t.closed()
	return err
}

type unixConn struct {
	*net.UnixConn
	t track
}

func (c *unixConn) tracked() *track { return &c.t }

func (c *unixConn) Read(b []byte) (int, error) {
	n, err := c.UnixConn.Read(b)
	c.t.got(b[:max(n, 0)])
	return n, err
}

func (c *unixConn) Close() error {
	err := c.UnixConn.Close()
	c.t.closed()
	return err
}

// otherConn is any other connection, as listeners make them that limit or read a
// proxy's header. What net/http asks of it by type assertion is passed on.
type otherConn struct {
	net.Conn
	t track
}

func (c *otherConn) tracked() *track { return &c.t }

func (c *otherConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.t.got(b[:max(n, 0)])
	return n, err
}

func (c *otherConn) Close() error {
	err := c.Conn.Close()
	c.t.closed()
	return err
}

func (c *otherConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

func (c *otherConn) ReadFrom(r io.Reader) (int64, error) {
	if rf, ok := c.Conn.(io.ReaderFrom); ok {
		return rf.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{c.Conn}, r)
}

// tlsLikeConn is an otherConn that tells net/http about its encryption (Request.TLS).
type tlsLikeConn struct {
	otherConn
	connectionState func() tls.ConnectionState
}

func (c *tlsLikeConn) ConnectionState() tls.ConnectionState { return c.connectionState() }

// wrap makes nc a connection that is tracked; a *tls.Conn is returned as it is,
// because net/http knows it by its type.
func (d *Drainer) wrap(nc net.Conn) net.Conn {
	var w wrapped
	switch v := nc.(type) {
	case *tls.Conn:
		return nc
	case *net.TCPConn:
		w = &tcpConn{TCPConn: v}
	case *net.UnixConn:
		w = &unixConn{UnixConn: v}
	case interface{ ConnectionState() tls.ConnectionState }:
		w = &tlsLikeConn{otherConn: otherConn{Conn: nc}, connectionState: v.ConnectionState}
	default:
		w = &otherConn{Conn: nc}
	}
	t := w.tracked()
	t.raw = nc
	t.counted = true
	t.sniff = d.srv.Protocols != nil && d.srv.Protocols.UnencryptedHTTP2()
	d.remember(t)
	return w
}

// trackOf finds what is known of a connection that net/http names; nil for a stranger.
func (d *Drainer) trackOf(nc net.Conn) *track {
	switch v := nc.(type) {
	case *tcpConn:
		return &v.t
	case *tls.Conn:
		if w, ok := v.NetConn().(wrapped); ok {
			return w.tracked()
		}
	case wrapped:
		return v.tracked()
	}
	if t, ok := d.unwrapped.Load(nc); ok {
		return t.(*track)
	}
	return nil
}

// unwrap is what the user's own hooks are given: the connection as accepted.
func unwrap(nc net.Conn) net.Conn {
	if w, ok := nc.(wrapped); ok {
		return w.tracked().raw
	}
	return nc
}

// listener wraps what a listener accepts.
type listener struct {
	net.Listener
	d *Drainer
}

func (l *listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.d.wrap(nc), nil
}
