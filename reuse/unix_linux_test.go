package reuse

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The process of a stranger is named.
func TestUnixStrangerIsNamed(t *testing.T) {
	path := filepath.Join(unixDir(t), "s")
	stranger, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	unixServe(t, stranger, "stranger")
	_, err = ListenUnix(t.Context(), path, nil)
	if !errors.Is(err, ErrStranger) || !strings.Contains(err.Error(), fmt.Sprintf("(pid %d)", os.Getpid())) {
		t.Errorf("got %v", err)
	}
}

// Where the file's number does not lead to the socket, the one who listens is asked.
func TestUnixAsk(t *testing.T) {
	path := filepath.Join(unixDir(t), "s")
	l := unixListen(t, path)
	unixPublish(t, l)
	for _, mine := range []bool{true, false} {
		s, found, err := unixAsk(t.Context(), path, func(inode uint64) bool { return mine && inode == l.Inode() })
		if err != nil || !found || s.PID != os.Getpid() || s.Command == "" {
			t.Fatalf("%+v, %v, %v", s, found, err)
		}
		if (s.Inode == l.Inode()) != mine {
			t.Errorf("%+v, mine: %v", s, mine)
		}
	}
	l.UnixListener.Close()
	if s, found, err := unixAsk(t.Context(), path, nil); found || err != nil {
		t.Errorf("dead: %+v, %v, %v", s, found, err)
	}
}

// A name of another kind is not stale: it is somebody's.
func TestUnixDatagramSocket(t *testing.T) {
	path := filepath.Join(unixDir(t), "s")
	pc, err := net.ListenPacket("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	if _, err := ListenUnix(t.Context(), path, nil); !errors.Is(err, ErrStranger) {
		t.Errorf("got %v", err)
	}
}

// A path that is longer than a socket's address is reached through its directory.
func TestUnixLongPath(t *testing.T) {
	dir := filepath.Join(unixDir(t), strings.Repeat("d", 120))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	old := unixListen(t, path)
	unixServe(t, old, "old")
	unixPublish(t, old)
	next := unixListen(t, path, old)
	unixServe(t, next, "next")
	unixPublish(t, next)
	c, err := unixDial(t.Context(), path)
	if got := unixRead(t, c, err); got != "next" {
		t.Errorf("%s answered", got)
	}
	c, err = old.Dial(t.Context())
	if got := unixRead(t, c, err); got != "old" {
		t.Errorf("%s answered", got)
	}
	if _, err := ListenUnix(t.Context(), path, nil); !errors.Is(err, ErrStranger) {
		t.Errorf("got %v", err)
	}
	next.Close()
	old.Close()
	if left := unixNames(t, dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// The kernel names the file of a listener, so a predecessor is known without a
// connection to it.
func TestUnixListeningWithoutConnecting(t *testing.T) {
	path := filepath.Join(unixDir(t), "s")
	l := unixListen(t, path)
	unixPublish(t, l)
	s, found := unixListening(path)
	if !found {
		t.Skip("this file system shows other numbers than the kernel's own")
	}
	if s.Inode != l.Inode() || s.PID != os.Getpid() {
		t.Errorf("%+v, want socket %d", s, l.Inode())
	}
	if n := backlogLen(t, InodeQueue("unix", 0, l.Inode())); n != 0 {
		t.Errorf("%d connections were made", n)
	}
}

// Negative control: closing at once, without the proof, cuts off who waits in the
// queue, and the queue is where the proof sees it.
func TestUnixCloseWithoutProofLoses(t *testing.T) {
	path := filepath.Join(unixDir(t), "s")
	old := unixListen(t, path)
	unixPublish(t, old)
	early, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	unixPublish(t, unixListen(t, path, old))

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := AwaitBacklog(ctx, 0, InodeQueue("unix", 0, old.Inode())); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("proof with a connection in the queue: %v", err)
	}
	old.Close()
	early.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := early.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d, %v: it was not cut off", n, err)
	}
}
