package webroot

import (
	"bytes"
	"net"
	"testing"
	"time"
)

// Datagrams come back as they were sent, an empty one too, until the socket is closed.
func TestEchoDatagrams(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- EchoDatagrams(pc) }()
	conn, err := net.Dial("udp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, maxDatagram)
	for _, sent := range [][]byte{[]byte("hello"), {}, bytes.Repeat([]byte("x"), 60000)} {
		if _, err := conn.Write(sent); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(buf)
		if err != nil || !bytes.Equal(buf[:n], sent) {
			t.Errorf("%d bytes sent, %d came back, %v", len(sent), n, err)
		}
	}
	pc.Close()
	if err := <-ended; err != nil {
		t.Errorf("after a close: %v", err)
	}
}
