package reuse

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// pair is a connection: the client's end, and the server's with a function that ends it if it rests.
func pair(t *testing.T) (client, server net.Conn, end func(quiet time.Duration) bool) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server, func(quiet time.Duration) bool { return endAfter(t, server, quiet, unusedTime) }
}

// endAfter ends a connection if it rests.
func endAfter(t *testing.T, server net.Conn, quiet, unused time.Duration) (ended bool) {
	t.Helper()
	raw, err := server.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { ended, err = endResting(int(fd), quiet, unused) })
	if err != nil {
		t.Fatal(err)
	}
	return ended
}

func say(t *testing.T, from, to net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(from, text); err != nil {
		t.Fatal(err)
	}
	if to == nil {
		return
	}
	if _, err := io.ReadFull(to, make([]byte, len(text))); err != nil {
		t.Fatal(err)
	}
}

// TestEndResting: a connection is ended after an answer, not while a request is worked on, and not
// before its time.
func TestEndResting(t *testing.T) {
	const quiet, tick = 40 * time.Millisecond, 15 * time.Millisecond // a clock tick is at most 10 ms
	const delayedACK = 40 * time.Millisecond
	client, server, end := pair(t)
	say(t, client, server, "request")
	time.Sleep(quiet + tick)
	if end(quiet) {
		t.Fatal("ended while the first request is worked on")
	}
	say(t, server, client, "answer")
	if end(time.Minute) {
		t.Fatal("ended at once after an answer")
	}
	time.Sleep(tick)
	say(t, client, nil, "request") // the program has not read it
	time.Sleep(quiet + tick)
	if end(quiet) {
		t.Fatal("ended with a request that nobody has read")
	}
	if _, err := io.ReadFull(server, make([]byte, len("request"))); err != nil {
		t.Fatal(err)
	}
	if end(quiet) {
		t.Fatal("ended while the second request is worked on")
	}
	say(t, server, client, "answer")
	time.Sleep(quiet + delayedACK + tick)
	if !end(quiet) {
		t.Fatal("not ended between two requests")
	}
	if n, err := server.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("the program reads %d, %v; want the end", n, err)
	}
	// A request that meets the moment is still answered by a program that reads it.
	say(t, client, server, "late")
	say(t, server, client, "answer")
}

// TestEndRestingUnused: one whose client has not said anything yet, whatever it was told, gets more time.
func TestEndRestingUnused(t *testing.T) {
	const quiet, later = 40 * time.Millisecond, 60 * time.Millisecond
	for _, greeting := range []string{"", "220 ready"} {
		client, server, end := pair(t)
		say(t, server, client, greeting)
		time.Sleep(later)
		if end(quiet) {
			t.Errorf("greeted with %q: ended before its first request", greeting)
		}
		if !endAfter(t, server, quiet, later) {
			t.Errorf("greeted with %q: not ended when it was unused for long", greeting)
		}
	}
}

// TestOpenConnection tells connections from all else that a descriptor can be.
func TestOpenConnection(t *testing.T) {
	look := func(c any) (open bool, port uint16) {
		raw, err := c.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) { open, port, _ = OpenConnection(int(fd)) })
		return open, port
	}
	client, server, _ := pair(t)
	want := uint16(server.LocalAddr().(*net.TCPAddr).Port)
	if open, port := look(server); !open || port != want {
		t.Errorf("a connection: %v, port %d, want %d", open, port, want)
	}
	client.Close() // its peer is to close still
	if open, port := look(server); !open || port != want {
		t.Errorf("one that its client has closed: %v, port %d, want %d", open, port, want)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	un, err := net.ListenPacket("unixgram", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer un.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for name, other := range map[string]any{"a listener": ln, "UDP": pc, "a unix socket": un, "a file": null} {
		if open, _ := look(other); open {
			t.Errorf("%s is taken for a connection", name)
		}
	}
}
