package owner

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"overlap/lifecycle/control"
	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
	"overlap/reuse"
)

func TestReaches(t *testing.T) {
	for _, c := range []struct {
		listens, dialed string
		want            bool
	}{
		{"127.0.0.1:80", "127.0.0.1:80", true},
		{"127.0.0.1:80", "127.0.0.1:81", false},
		{"127.0.0.1:80", "127.0.0.2:80", true}, // both are this machine
		{"127.0.0.1:80", "192.0.2.1:80", false},
		{"192.0.2.1:80", "127.0.0.1:80", false},
		{"192.0.2.1:80", "192.0.2.1:80", true},
		{"192.0.2.1:80", "0.0.0.0:80", true}, // the probe means whatever is listened on
		{"0.0.0.0:80", "192.0.2.1:80", true},
		{"0.0.0.0:80", "127.0.0.1:80", true},
		{"[::1]:80", "127.0.0.1:80", true}, // localhost
		{"[::]:80", "127.0.0.1:80", true},
		{"[2001:db8::1]:80", "[2001:db8::2]:80", false},
		{"127.0.0.1:80", "nonsense", false},
	} {
		a, err := reuse.ParseAddress(context.Background(), "tcp", c.listens)
		if err != nil {
			t.Fatal(err)
		}
		if got := reaches(a, c.dialed); got != c.want {
			t.Errorf("dialing %s reaches %s: %t, want %t", c.dialed, c.listens, got, c.want)
		}
	}
}

func TestStrangerError(t *testing.T) {
	at := netip.MustParseAddrPort("127.0.0.1:80")
	for _, c := range []struct {
		err  error
		want string
	}{
		{&StrangerError{reuse.Stranger{Address: at, PID: 7, Command: "nginx"}},
			"127.0.0.1:80 is in use by pid 7 (nginx), which is not of this service"},
		{&StrangerError{reuse.Stranger{Address: at}},
			"127.0.0.1:80 is in use by a process that cannot be seen, which is not of this service"},
	} {
		if c.err.Error() != c.want || !errors.Is(c.err, ErrStranger) {
			t.Errorf("%q, want %q", c.err, c.want)
		}
	}
}

func TestOverlappingAddresses(t *testing.T) {
	o := &Owner{predecessor: &predecessor{number: 3, listeners: []listener{
		{Network: "tcp", Address: "127.0.0.1:80", Inodes: []uint64{1}},
		{Network: "tcp", Address: "[::]:90", V6Only: true, Inodes: []uint64{2}},
		{Network: "udp", Address: "127.0.0.1:53", Inodes: []uint64{3}},
		{Network: "unix", Address: "/run/web.sock", Inodes: []uint64{4}},
	}}}
	for _, c := range []struct {
		network, addr string
		inode         uint64
		overlap       bool
	}{
		{"tcp", "127.0.0.1:80", 1, false},
		{"tcp", "127.0.0.2:80", 0, false},
		{"tcp", "127.0.0.1:81", 0, false},
		{"tcp", "0.0.0.0:80", 0, true},
		{"tcp", "[::]:80", 0, true},
		{"tcp4", "0.0.0.0:90", 0, false},
		{"tcp6", "[::]:90", 2, false},
		{"udp", "127.0.0.1:53", 3, false},
		{"tcp", "127.0.0.1:53", 0, false},
		{"udp", "127.0.0.1:80", 0, false},
	} {
		a, err := reuse.ParseAddress(context.Background(), c.network, c.addr)
		if err != nil {
			t.Fatal(err)
		}
		l, err := o.compare(a)
		if errors.Is(err, ErrOverlap) != c.overlap || err != nil && !c.overlap {
			t.Errorf("%s %s: %v", c.network, c.addr, err)
			continue
		}
		if got := l != nil && len(l.Inodes) == 1 && l.Inodes[0] == c.inode; got != (c.inode != 0) {
			t.Errorf("%s %s: found %+v, want inode %d", c.network, c.addr, l, c.inode)
		}
	}
	if l, err := (&Owner{}).compare(reuse.Address{Network: "tcp"}); l != nil || err != nil {
		t.Errorf("without a predecessor: %+v, %v", l, err)
	}
}

// TestWatch: who asked for a reload hears of the generation with its token alone.
func TestWatch(t *testing.T) {
	var w watch
	w.tell(control.Event{Kind: control.KindSwitched, Generation: 2}) // nobody watches
	events := w.begin("token")
	w.entered(hello{Generation: 2, Token: "another"})
	w.tell(control.Event{Kind: control.KindSwitched, Generation: 2})
	w.entered(hello{Generation: 3, Token: "token"})
	w.tell(control.Event{Kind: control.KindSwitched, Generation: 2})
	w.tell(control.Event{Kind: control.KindHealthy, Generation: 3})
	w.broken(2)
	w.tell(control.Event{Kind: control.KindDrained, Generation: 1})
	for range 100 { // a watcher that does not read holds nobody up
		w.broken(3)
	}
	w.end()
	w.tell(control.Event{Kind: control.KindHealthy, Generation: 3})
	for _, want := range []control.Event{{Kind: control.KindStarting, Generation: 3}, {Kind: control.KindHealthy, Generation: 3},
		{Kind: control.KindDrained, Generation: 1}, {Kind: "broken", Generation: 3}} {
		if got := <-events; got.Kind != want.Kind || got.Generation != want.Generation {
			t.Errorf("heard %s of %d, want %s of %d", got.Kind, got.Generation, want.Kind, want.Generation)
		}
	}
}

func TestOrphanNeedsALauncher(t *testing.T) {
	for _, r := range []state.Record{{}, {Launched: true, State: state.Starting}, {State: state.Serving},
		{Launched: true, State: state.Serving, Listeners: []state.Listener{{Network: "tcp", Address: "127.0.0.1:1", Inodes: []uint64{1}}}}} {
		if Orphan(r) {
			t.Errorf("%+v is taken for a program without a launcher", r)
		}
	}
}

// TestSilentGeneration: a listener that no generation knows may be that of one that lives and does not answer. It is
// refused, and not called a stranger's.
func TestSilentGeneration(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := reuse.ParseAddress(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if there, err := reuse.Sockets("tcp", a.AddrPort.Port()); err != nil || len(there) == 0 {
		t.Skipf("listeners can't be seen here: %v", err)
	}
	dir, err := state.Open(t.TempDir(), "web")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	lock, err := dir.Own(1)
	if err != nil {
		t.Fatal(err)
	}
	self, err := process.Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.Write(state.Record{Service: "web", Generation: 1, State: state.Draining, Owner: self}); err != nil {
		t.Fatal(err)
	}
	silent, err := net.Listen("unix", dir.SocketPath(1))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	o := &Owner{cfg: Config{UID: -1}, dir: dir, number: 2, log: slog.New(slog.DiscardHandler)}

	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := o.RefuseStrangers(ctx, a); err == nil || errors.Is(err, ErrStranger) || !strings.Contains(err.Error(), "generation 1") {
		t.Errorf("%v, want that generation 1 does not answer", err)
	}
	lock.Unlock()
	if err := o.RefuseStrangers(t.Context(), a); !errors.Is(err, ErrStranger) {
		t.Errorf("%v, want %v: nobody lives whose it could be", err, ErrStranger)
	}
}
