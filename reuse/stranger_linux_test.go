package reuse

import (
	"net"
	"os"
	"slices"
	"testing"
)

func TestStrangerListening(t *testing.T) {
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	client, err := net.Dial("udp", udp.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()

	for _, tt := range []struct {
		network, want string
		addr          net.Addr
		listens       bool
	}{
		{"tcp", "tcp", tcp.Addr(), true},
		{"tcp6", "tcp", tcp.Addr(), true},
		{"udp", "udp", udp.LocalAddr(), true},
		{"udp4", "udp", udp.LocalAddr(), true},
		{"udp", "udp", client.LocalAddr(), false}, // connected: it hears its peer only
	} {
		var port uint16
		var at string
		switch a := tt.addr.(type) {
		case *net.TCPAddr:
			port, at = uint16(a.Port), a.String()
		case *net.UDPAddr:
			port, at = uint16(a.Port), a.String()
		}
		found, err := Listening(tt.network, port)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(found, func(s Stranger) bool { return s.Address.String() == at && s.PID == os.Getpid() })
		if (i >= 0) != tt.listens {
			t.Fatalf("%s %s: found %+v", tt.network, at, found)
		}
		if i < 0 {
			continue
		}
		if s := found[i]; s.Command == "" || s.Network != tt.want || s.Inode == 0 || s.UID != uint32(os.Geteuid()) {
			t.Errorf("%s: %+v", tt.network, s)
		}
	}
	if _, err := Listening("sctp", 1); err == nil {
		t.Error("no error for an unknown network")
	}
}

// Two descriptors of one process for one socket are one stranger.
func TestStrangerOncePerProcess(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	second, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	found, err := Listening("tcp", uint16(ln.Addr().(*net.TCPAddr).Port))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, s := range found {
		if s.PID == os.Getpid() && s.Address.String() == ln.Addr().String() {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d entries: %+v", n, found)
	}
}
