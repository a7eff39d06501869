package httpdrain

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, &x509.Certificate{SerialNumber: big.NewInt(1)}, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serveTLS serves with ServeTLS, or with Serve on a listener of crypto/tls.
func serveTLS(t *testing.T, h http.Handler, own bool) *fixture {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{certificate(t)}, NextProtos: []string{"h2", "http/1.1"}}
	s := &fixture{t: t, srv: &http.Server{Handler: h, TLSConfig: config}, ln: ln, addr: ln.Addr().String(),
		closed: make(chan struct{}), result: make(chan error, 1), report: make(chan outcome, 1)}
	s.d = New(s.srv, Options{})
	go func() {
		if own {
			s.result <- s.d.Serve(tls.NewListener(ln, config))
		} else {
			s.result <- s.d.ServeTLS(ln, "", "")
		}
	}()
	t.Cleanup(func() { s.srv.Close(); ln.Close() })
	return s
}

func http2Client(t *testing.T) *http.Client {
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

func fetch(c *http.Client, url string) error {
	res, err := c.Get(url)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && (string(b) != "hello" || res.ProtoMajor != 2) {
		err = fmt.Errorf("%q over %s", b, res.Proto)
	}
	return err
}

func TestHTTP2WithStreamsInFlight(t *testing.T) {
	for _, own := range []bool{false, true} {
		t.Run(fmt.Sprintf("own listener %v", own), func(t *testing.T) {
			g := newGate()
			s := serveTLS(t, slowOn(g), own)
			streams(t, s, http2Client(t), "https://"+s.addr, g)
		})
	}
}

func TestUnencryptedHTTP2(t *testing.T) {
	g := newGate()
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	s := serve(t, &http.Server{Handler: slowOn(g), Protocols: &p})
	var only http.Protocols
	only.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &only}
	t.Cleanup(tr.CloseIdleConnections)
	streams(t, s, &http.Client{Transport: tr, Timeout: patience}, "http://"+s.addr, g)
}

// streams has requests in flight on one HTTP/2 connection when the drain begins.
func streams(t *testing.T, s *fixture, c *http.Client, url string, g *gate) {
	t.Helper()
	if err := fetch(c, url+"/"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	const n = 8
	for range n {
		wg.Go(func() {
			if err := fetch(c, url+"/slow"); err != nil {
				t.Error(err)
			}
		})
	}
	for range n {
		receive(t, "request", g.entered)
	}
	if got := s.d.Counts(); got != (Counts{Active: 1}) {
		t.Errorf("%+v", got)
	}
	s.drain(limit(t), 0)
	close(g.open)
	wg.Wait()
	r := s.drainedWell()
	if r.Finished != 1 {
		t.Errorf("%+v", r)
	}
	t.Logf("%+v", r)
}

// An idle HTTP/2 connection answers one more and ends with GOAWAY, before the grace does.
func TestHTTP2IdleSendsOneMore(t *testing.T) {
	s := serveTLS(t, hello, false)
	c := http2Client(t)
	if err := fetch(c, "https://"+s.addr); err != nil {
		t.Fatal(err)
	}
	s.drain(limit(t), time.Hour)
	if err := fetch(c, "https://"+s.addr); err != nil {
		t.Error(err)
	}
	s.drainedWell()
}

func TestHTTP2IdleGetsGoAwayAfterTheGrace(t *testing.T) {
	s := serveTLS(t, hello, false)
	c := http2Client(t)
	if err := fetch(c, "https://"+s.addr); err != nil {
		t.Fatal(err)
	}
	s.drain(limit(t), 50*time.Millisecond)
	if r := s.drainedWell(); r.Total < 50*time.Millisecond || r.Finished != 1 {
		t.Errorf("%+v", r)
	}
}

func dialTLS(t *testing.T, addr string) *client {
	t.Helper()
	raw := dial(t, addr)
	c := tls.Client(raw.Conn, &tls.Config{InsecureSkipVerify: true})
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	return &client{c, bufio.NewReader(c)}
}

func TestTLSWithHTTP1(t *testing.T) {
	s := serveTLS(t, hello, false)
	idle, fresh := dialTLS(t, s.addr), dialTLS(t, s.addr)
	idle.mustGet(t, "/", false)
	s.drain(limit(t), time.Hour)
	idle.mustGet(t, "/", true)
	fresh.mustGet(t, "/", true)
	idle.mustEnd(t)
	fresh.mustEnd(t)
	s.drainedWell()
}

// A browser's spare connection: the handshake is done and no request comes. It is closed
// with TLS's good-bye, and does not hold the drain until its context ends.
func TestTLSSpareConnectionIsClosed(t *testing.T) {
	for _, own := range []bool{false, true} {
		t.Run(fmt.Sprintf("own listener %v", own), func(t *testing.T) {
			t.Parallel()
			s := serveTLS(t, hello, own)
			idle, spare := dialTLS(t, s.addr), dialTLS(t, s.addr)
			idle.mustGet(t, "/", false)
			eventually(t, "accepted", func() bool { return s.d.Counts().Open() == 2 })
			s.drain(limit(t), 0)
			idle.mustEnd(t)
			spare.mustEnd(t)
			if r := s.drainedWell(); r.Finished != 2 || r.Total < minNew {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestTLSHijacked(t *testing.T) {
	conns := make(chan net.Conn, 1)
	s := serveTLS(t, hijacker(conns), false)
	c := dialTLS(t, s.addr)
	c.send(upgrade)
	hijacked := receive(t, "hijack", conns)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.d.RegisterOnDrain(func() { hijacked.Close() })
	s.drain(ctx, 0)
	if r := s.drainedWell(); r.Hijacked != 1 || r.Finished != 1 {
		t.Errorf("%+v", r)
	}
}
