package lifecycle

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"overlap/lifecycle/control"
)

// TestGuestListensAtOnce: the methods of a Generation are safe for concurrent use, under a launcher too.
func TestGuestListensAtOnce(t *testing.T) {
	g := &Generation{guest: &guest{number: 1}}
	const each = 16
	var all sync.WaitGroup
	for range each {
		all.Go(func() {
			if ln, err := g.Listen(context.Background(), "tcp", "127.0.0.1:0"); err != nil {
				t.Error(err)
			} else {
				t.Cleanup(func() { ln.Close() })
			}
		})
		all.Go(func() {
			if pc, err := g.ListenPacket(context.Background(), "udp", "127.0.0.1:0"); err != nil {
				t.Error(err)
			} else {
				t.Cleanup(func() { pc.Close() })
			}
		})
	}
	all.Wait()
	if lns, packets := len(g.guest.lns.all()), len(g.guest.packets.all()); lns != each || packets != each {
		t.Errorf("%d listeners and %d packet sockets are known, want %d of each", lns, packets, each)
	}
}

// TestFindGuest: a launcher that is there and can't be asked is an error, one that is dead or another's is none.
func TestFindGuest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "1.launcher")
	t.Setenv("OVERLAP_GENERATION", "1")
	t.Setenv(envOwner, path)
	find := func() (*guest, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		return findGuest(ctx)
	}
	if g, err := find(); g != nil || err != nil {
		t.Errorf("nobody there: %v, %v", g, err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if g, err := find(); g != nil || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one that does not answer: %v, %v", g, err)
	}
	refusing := make(chan struct{})
	go func() {
		defer close(refusing)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	if g, err := find(); g != nil || err != nil {
		t.Errorf("one that does not know this process: %v, %v", g, err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	<-refusing
	if g, err := find(); g != nil || err != nil {
		t.Errorf("one that died: %v, %v", g, err)
	}
	owner := os.Getpid() // no process is its own ancestor
	s, err := control.Introduce(path, 0o600, func(int) bool { return true }, func() control.Status {
		return control.Status{Generations: []control.Generation{{Generation: 1, State: Starting, Owner: owner}}}
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background())
	if g, err := find(); g != nil || err != nil {
		t.Errorf("one that is no ancestor: %v, %v", g, err)
	}
	owner = os.Getppid()
	if g, err := find(); g == nil || err != nil || g.number != 1 {
		t.Errorf("the launcher: %v, %v", g, err)
	}
}
