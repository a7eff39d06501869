package lifecycle_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"overlap/lifecycle"
	"overlap/lifecycle/state"
)

// TestListenAtOnce: several accept queues of one address that are asked for at once are one group.
func TestListenAtOnce(t *testing.T) {
	needLinux(t)
	t.Parallel()
	root := t.TempDir() + "/state"
	g, err := lifecycle.New(lifecycle.Options{Name: "web", StateDir: root, NoSignals: true, IdleGrace: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	_, tcp, _ := strings.Cut(freeAddress(t, "tcp 127.0.0.1:0"), " ")
	_, udp, _ := strings.Cut(freeAddress(t, "udp 127.0.0.1:0"), " ")
	const each = 8
	var all sync.WaitGroup
	for range each {
		all.Go(func() {
			ln, err := g.Listen(context.Background(), "tcp", tcp)
			if err != nil {
				t.Error(err)
				return
			}
			g.HTTP(&http.Server{Handler: http.NotFoundHandler()}, ln)
		})
		all.Go(func() {
			if _, err := g.ListenPacket(context.Background(), "udp", udp); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	done := make(chan error, 1)
	go func() { done <- g.Run(context.Background()) }()
	dir, err := state.Find(root, "web")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	eventually(t, func() error {
		select {
		case err := <-done:
			t.Fatalf("it ended: %v", err)
		default:
		}
		if s := g.State(); s != lifecycle.Serving {
			return fmt.Errorf("state %s", s)
		}
		return nil
	})
	r, err := dir.Read(g.Number())
	if err != nil {
		t.Fatal(err)
	}
	for network, addr := range map[string]string{"tcp": tcp, "udp": udp} {
		members := slices.DeleteFunc(slices.Clone(r.Listeners), func(l state.Listener) bool { return l.Network != network })
		if len(members) != 1 || members[0].Address != addr || len(members[0].Inodes) != each {
			t.Errorf("%s is recorded as %+v, want one group of %d sockets", network, members, each)
		}
	}
	g.Stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
