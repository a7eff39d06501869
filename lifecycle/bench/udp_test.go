package bench

import (
	"encoding/binary"
	"maps"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// udpServer answers datagrams by what handle says.
func udpServer(t *testing.T, handle func(reply func([]byte), packet []byte)) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			handle(func(b []byte) { pc.WriteTo(b, from) }, append([]byte(nil), buf[:n]...))
		}
	})
	t.Cleanup(func() { pc.Close(); wg.Wait() })
	return pc.LocalAddr().String()
}

func TestDatagrams(t *testing.T) {
	echo := func(reply func([]byte), p []byte) { reply(p) }
	var held []byte
	tests := []struct {
		name   string
		rate   float64
		handle func(func([]byte), []byte)
		want   map[Cause]int64
	}{
		{"echo", 0, echo, nil},
		{"echo at a rate", 1000, echo, nil},
		{"twice", 0, func(reply func([]byte), p []byte) { reply(p); reply(p) }, nil},
		{"out of order", 1000, func(reply func([]byte), p []byte) {
			if held == nil {
				held = p
				return
			}
			reply(p)
			reply(held)
			held = nil
		}, nil},
		{"half are lost", 0, func(reply func([]byte), p []byte) {
			if binary.BigEndian.Uint64(p)%2 == 0 {
				reply(p)
			}
		}, map[Cause]int64{Timeout: 10}},
		{"half are lost at a rate", 1000, func(reply func([]byte), p []byte) {
			if binary.BigEndian.Uint64(p)%2 == 0 {
				reply(p)
			}
		}, map[Cause]int64{Timeout: 10}},
		{"changed", 0, func(reply func([]byte), p []byte) { reply(append(p, 'x')) }, map[Cause]int64{Body: 20}},
		{"changed before a name", 0, func(reply func([]byte), p []byte) {
			reply(append(append(p, 'x'), generationLine+"7"...))
		}, map[Cause]int64{Body: 20}},
		{"named", 0, func(reply func([]byte), p []byte) { reply(append(p, generationLine+"7\n"...)) }, nil},
		{"cut", 0, func(reply func([]byte), p []byte) { reply(p[:3]) }, map[Cause]int64{Body: 20}},
		{"cut to nothing", 0, func(reply func([]byte), p []byte) { reply(nil) }, map[Cause]int64{Body: 20}},
		{"cut at a rate", 1000, func(reply func([]byte), p []byte) { reply(p[:3]) }, map[Cause]int64{Body: 20}},
		{"cut and whole", 0, func(reply func([]byte), p []byte) { reply(p[:3]); reply(p) }, map[Cause]int64{Body: 20}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			l := Load{Address: udpServer(t, test.handle), Network: "udp", Clients: 2, Requests: 20, Rate: test.rate, Body: []byte("hello")}
			if test.name == "out of order" {
				l.Clients = 1
			}
			if test.want[Timeout] > 0 {
				l.Clients = 1
				l.Timeout = 50 * time.Millisecond
			}
			r := mustRun(t, l)
			if n := test.want[Timeout]; n > 0 && r.ByCause[Timeout] > n {
				// An echo that a busy machine held up for that long is lost, too.
				test.want = map[Cause]int64{Timeout: r.ByCause[Timeout]}
			}
			if r.Requests != 20 || !maps.Equal(r.ByCause, test.want) && len(r.ByCause)+len(test.want) > 0 {
				t.Errorf("%d datagrams, failed by cause %v, want 20 and %v", r.Requests, r.ByCause, test.want)
			}
			if test.name == "named" && (len(r.ByGeneration) != 1 || r.ByGeneration[0] != GenerationResult{"7", 20}) {
				t.Errorf("by generation: %v", r.ByGeneration)
			}
		})
	}
}

// Nobody listens: the port is bound, so that nobody else can take it meanwhile.
func TestRefused(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"tcp", "udp"} {
		kind := map[string]int{"tcp": unix.SOCK_STREAM, "udp": unix.SOCK_DGRAM}[network]
		fd, err := unix.Socket(unix.AF_INET, kind, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			t.Fatal(err)
		}
		sa, err := unix.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		port := sa.(*unix.SockaddrInet4).Port
		defer unix.Close(fd)
		if network == "udp" {
			// A bound socket would take what comes; a connected one takes only its peer's.
			if err := unix.Connect(fd, &unix.SockaddrInet4{Port: 1, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
				t.Fatal(err)
			}
		}
		l := Load{Address: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), Network: network, Clients: 2, Requests: 10}
		if r := mustRun(t, l); r.ByCause[Refused] != 10 || r.Failed != 10 {
			t.Errorf("%s: failed by cause %v, want 10 refused", network, r.ByCause)
		}
	}
}
