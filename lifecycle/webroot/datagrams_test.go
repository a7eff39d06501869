package webroot

import (
	"bytes"
	"net"
	"runtime"
	"testing"
	"time"
)

// Datagrams come back as they were sent, with the generation behind them, an empty one too and
// without it the largest, until the socket is closed.
func TestEchoDatagrams(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- EchoDatagrams(pc, func() int { return 7 }) }()
	conn, err := net.Dial("udp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, maxDatagram)
	all := [][]byte{[]byte("hello"), {}, bytes.Repeat([]byte("x"), 9000)}
	if runtime.GOOS == "linux" { // others hold less
		all = append(all, bytes.Repeat([]byte("x"), 65507))
	}
	for _, sent := range all {
		if _, err := conn.Write(sent); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(buf)
		want := string(sent) + "\nOverlap-Generation: 7"
		if len(sent) == 65507 { // what UDP over IPv4 holds
			want = string(sent)
		}
		if err != nil || string(buf[:n]) != want {
			t.Errorf("%d bytes sent, %d came back, %v", len(sent), n, err)
		}
	}
	pc.Close()
	if err := <-ended; err != nil {
		t.Errorf("after a close: %v", err)
	}
}
