package reuse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// launched is a generation as a launcher has it: a placeholder first, then the sockets of a program in
// other hands, which can close at any moment.
type launched struct {
	*Member
	number int
	lns    []net.Listener
	done   sync.WaitGroup
	ready  atomic.Bool // it was switched to
}

// launch starts the program of a generation, with so many sockets.
func launch(t *testing.T, a Address, number, sockets int, wrong *atomic.Int64) *launched {
	t.Helper()
	g := &launched{Member: Open(a, -1), number: number}
	if err := g.Anchor(); err != nil {
		t.Fatal(err)
	}
	for range sockets {
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			c.Control(func(fd uintptr) { err = Share(int(fd), a) })
			return err
		}}
		lc.SetMultipathTCP(false)
		ln, err := lc.Listen(context.Background(), "tcp", a.String())
		if err != nil {
			t.Fatal(err)
		}
		raw, err := ln.(*net.TCPListener).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		control := func(f func(fd int) error) error {
			err := errors.New("not called")
			if cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
				return fmt.Errorf("%w: %v", ErrUnreachable, cerr)
			}
			return err
		}
		var ino uint64
		control(func(fd int) (err error) { ino, err = inode(fd); return err })
		g.Adopt(ino, control)
		g.lns = append(g.lns, ln)
		g.done.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				if probe := c.RemoteAddr().(*net.TCPAddr).IP.Equal(net.IPv4(127, 0, 0, 1)); !g.ready.Load() && !probe {
					wrong.Add(1)
				}
				fmt.Fprintf(c, "%d", number)
				c.Close()
			}
		})
	}
	return g
}

// die ends the program.
func (g *launched) die() {
	for _, ln := range g.lns {
		ln.Close() // it may be closed
	}
	g.done.Wait()
}

// probe tries more than once: what is left of an earlier probe's connection may have the port, and ignores
// what comes with fewer hops, such as the answers of a socket that is closed.
func probe(m *Member) (err error) {
	for range 3 {
		var c net.Conn
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		c, err = m.DialProbe(ctx)
		cancel()
		if err == nil {
			return c.Close()
		}
	}
	return err
}

// TestLaunchedRandomly: whatever dies at whatever step of a handover, no client is refused while there is
// a generation, none reaches a program that was not switched to, and the places do not grow.
func TestLaunchedRandomly(t *testing.T) {
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("-seed %d", s)
	rnd := rand.New(rand.NewPCG(s, 2))
	at := freeAddress(t, "tcp")
	var wrong, refused, landed, waited atomic.Int64
	number := 1
	old := launch(t, at, number, 2, &wrong)
	if err := old.Settle(nil); err != nil {
		t.Fatal(err)
	}
	old.ready.Store(true)
	if err := old.Switch(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	// A listener that closes by its death resets what it holds, so only the answer to the SYN counts.
	for i := range 4 {
		clients.Go(func() {
			for ctx.Err() == nil {
				d := net.Dialer{Timeout: 20 * time.Millisecond, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i))}}
				c, err := d.Dial("tcp", at.String())
				switch {
				case err == nil:
					landed.Add(1)
					c.Close()
				case errors.Is(err, syscall.ECONNREFUSED):
					refused.Add(1)
					t.Errorf("a client was refused at %s", time.Now().Format("05.000000"))
				default:
					waited.Add(1)
				}
				time.Sleep(time.Duration(rand.IntN(500)) * time.Microsecond)
			}
		})
	}
	alive := true // the serving program
	var dying sync.WaitGroup
	var dead atomic.Bool // it died by itself, and its owner does not know yet
	crash := func() {
		if !alive {
			return
		}
		alive = false
		old.die()
	}
	hold := func() { // owner.Hold, with a successor or without
		for _, ino := range old.Inodes() {
			old.Drop(ino)
		}
	}
	keepWaiting := func() {
		if err := errors.Join(old.Anchor(), old.Hold()); err != nil {
			t.Error("hold:", err)
		}
	}
	var leaving sync.WaitGroup
	highest := 0
	for round := range *launchedRounds {
		number++
		dies := -1 // the step before which the serving program dies
		if alive && rnd.IntN(3) == 0 {
			dies = rnd.IntN(5)
		}
		fails := -1
		if rnd.IntN(2) == 0 {
			fails = rnd.IntN(4)
		}
		if alive && rnd.IntN(3) == 0 {
			dies = 5
			victim := old
			after := time.Duration(rnd.IntN(12000)) * time.Microsecond
			dying.Go(func() {
				time.Sleep(after)
				dead.Store(true)
				for _, ln := range victim.lns {
					ln.Close()
				}
			})
		}
		notice := func() {
			if dead.Swap(false) {
				crash()
				hold()
			}
		}
		complain := func(what string, err error) {
			if !dead.Load() {
				t.Error(what, err)
			}
		}
		finish := func() { // the owner of the one that serves learns of its death
			dying.Wait()
			if dead.Load() {
				notice()
				keepWaiting()
			}
		}
		step := func(n int) {
			notice()
			if dies == n {
				crash()
				hold()
			}
			if rnd.IntN(8) == 0 && alive { // its sockets changed: owner.Changed
				if err := old.Reclaim(); err != nil {
					complain("changed:", err)
				}
			}
		}
		reserve := func() {
			if alive || rnd.IntN(2) == 0 {
				if err := old.Reserve(); err != nil {
					complain("reserve:", err)
				}
			}
		}
		reserve() // early
		step(0)
		if fails == 0 { // before anything was there
			if alive {
				if err := old.Reclaim(); err != nil {
					complain("reclaim:", err)
				}
			} else {
				keepWaiting()
			}
			dying.Wait()
			finish()
			continue
		}
		reserve()
		g := launch(t, at, number, 1+rnd.IntN(3), &wrong)
		step(1)
		failed := func() bool {
			if rnd.IntN(2) == 0 {
				g.die()
				g.Leave()
			} else {
				g.Leave()
				g.die()
			}
			if alive {
				if err := old.Reclaim(); err != nil {
					complain("reclaim:", err)
				}
			} else {
				keepWaiting()
			}
			return true
		}
		if fails == 1 && failed() {
			finish()
			continue
		}
		old.Yield()
		step(2)
		if fails == 2 && failed() {
			finish()
			continue
		}
		if err := g.Settle(old.Inodes()); err != nil {
			t.Fatal(round, err)
		}
		if err := probe(g.Member); err != nil {
			t.Error("probe:", err)
		}
		step(3)
		if fails == 3 && failed() {
			finish()
			continue
		}
		g.ready.Store(true)
		if err := g.Switch(); err != nil {
			t.Fatal(err)
		}
		if dies == 4 {
			crash()
			hold()
		}
		dying.Wait()
		dead.Store(false)
		gone, was := old, alive && dies != 5
		retire := func() {
			gone.Recede()
			if was {
				AwaitBacklogOf(context.Background(), gone.Member)
			}
			gone.Leave()
			gone.die()
		}
		leaving.Wait()
		if rnd.IntN(3) == 0 {
			leaving.Go(retire)
		} else {
			retire()
		}
		old, alive = g, true
		array, err := locate(at)
		if err != nil {
			t.Fatal(round, err)
		}
		highest = max(highest, len(array))
	}
	leaving.Wait()
	stop()
	clients.Wait()
	array, err := locate(at)
	own := len(old.Sockets())
	t.Logf("%d landed, %d waited, %d refused; at most %d sockets; at the end %d of which %d are the last one's, %v", landed.Load(), waited.Load(), refused.Load(), highest, len(array), own, err)
	if wrong.Load() > 0 {
		t.Errorf("%d clients reached a program that was not switched to", wrong.Load())
	}
	if len(array) != own {
		t.Errorf("placeholders are left: %d sockets, the last generation has %d", len(array), own)
	}
	if highest > 40 {
		t.Errorf("the group grows: %d sockets", highest)
	}
	old.Leave()
	old.die()
}

// TestCrashesDoNotGrowUDP is TestCrashesDoNotGrow with datagrams.
func TestCrashesDoNotGrowUDP(t *testing.T) {
	at := freeAddress(t, "udp")
	start := func() (*Member, net.PacketConn) {
		m := Open(at, -1)
		if err := m.Anchor(); err != nil {
			t.Fatal(err)
		}
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
			c.Control(func(fd uintptr) { err = Share(int(fd), at) })
			return err
		}}
		pc, err := lc.ListenPacket(context.Background(), "udp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		raw, err := pc.(*net.UDPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		control := func(f func(fd int) error) (err error) {
			raw.Control(func(fd uintptr) { err = f(int(fd)) })
			return err
		}
		var ino uint64
		control(func(fd int) (err error) { ino, err = inode(fd); return err })
		m.Adopt(ino, control)
		return m, pc
	}
	old, pc := start()
	if err := errors.Join(old.Settle(nil), old.Switch()); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		pc.Close()
		for _, ino := range old.Inodes() {
			old.Drop(ino)
		}
		if err := errors.Join(old.Anchor(), old.Hold(), old.Reserve()); err != nil {
			t.Fatal(err)
		}
		next, nextConn := start()
		old.Yield()
		if err := errors.Join(next.Settle(nil), next.Switch()); err != nil {
			t.Fatal(err)
		}
		old.Recede()
		old.Leave()
		old, pc = next, nextConn
	}
	defer old.Leave()
	defer pc.Close()
	array, err := locate(at)
	if err != nil || len(array) > 4 || slices.Max(old.places) > 2 {
		t.Errorf("%d sockets, places %v, %v", len(array), old.places, err)
	}
}

// TestOtherUsersBind: a bind by another user, which the kernel refuses, takes no placeholder from a member that has sockets.
func TestOtherUsersBind(t *testing.T) {
	var wrong atomic.Int64
	m := launch(t, freeAddress(t, "tcp"), 1, 1, &wrong)
	defer func() { m.Leave(); m.die() }()
	if err := errors.Join(m.Settle(nil), m.Switch()); err != nil {
		t.Fatal(err)
	}
	before := m.Sockets()
	if err := m.ForUser(os.Geteuid()); err != nil {
		t.Errorf("for the member's own user: %v", err)
	}
	if err := m.ForUser(os.Geteuid() + 1); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("for another user: %v, want %v", err, syscall.EADDRINUSE)
	}
	if after := m.Sockets(); !slices.Equal(before, after) {
		t.Errorf("sockets %v, before %v", after, before)
	}
}

// TestBindsAnewAsAnotherUser: a program that has bound its port as root, to see whether it is free, and then becomes another
// user has a group of its own, which is steered from the beginning.
func TestBindsAnewAsAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root has placeholders for another user")
	}
	m := Open(freeAddress(t, "tcp"), os.Geteuid())
	defer m.Leave()
	if err := errors.Join(m.Anchor(), m.ForUser(65534)); err != nil {
		t.Fatal(err)
	}
	for range 5 { // they would be found by chance if they were fewer
		if err := m.addHolderLocked(); err != nil {
			t.Fatal(err)
		}
	}
	array, err := locate(m.addr)
	if err != nil || !slices.Equal(array, m.Sockets()) {
		t.Errorf("places %v, %v; want %v", array, err, m.Sockets())
	}
}

// TestCrashesDoNotGrow: a program that crashes and is started again, time after time, stays near the
// group's first place.
func TestCrashesDoNotGrow(t *testing.T) {
	at := freeAddress(t, "tcp")
	var wrong atomic.Int64
	old := launch(t, at, 1, 1, &wrong)
	if err := errors.Join(old.Settle(nil), old.Switch()); err != nil {
		t.Fatal(err)
	}
	for n := range 20 {
		old.die()
		for _, ino := range old.Inodes() {
			old.Drop(ino)
		}
		if err := errors.Join(old.Anchor(), old.Hold(), old.Reserve()); err != nil {
			t.Fatal(err)
		}
		g := launch(t, at, n+2, 1, &wrong)
		old.Yield()
		if err := errors.Join(g.Settle(nil), probe(g.Member), g.Switch()); err != nil {
			t.Fatal(err)
		}
		old.Recede()
		old.Leave()
		old = g
	}
	defer old.die()
	defer old.Leave()
	array, err := locate(at)
	if err != nil || len(array) > 4 || slices.Max(old.places) > 2 {
		t.Errorf("%d sockets, places %v, %v", len(array), old.places, err)
	}
}

// TestGateOutOfReach: a socket whose gate can't be opened because it is out of reach, and that somebody has,
// is no success: its clients would wait for good. One that is gone is none's business.
func TestGateOutOfReach(t *testing.T) {
	at := freeAddress(t, "tcp")
	var wrong atomic.Int64
	old := launch(t, at, 1, 1, &wrong)
	if err := errors.Join(old.Settle(nil), old.Switch()); err != nil {
		t.Fatal(err)
	}
	old.ready.Store(true)
	defer old.die()
	defer old.Leave()
	if err := old.Reserve(); err != nil {
		t.Fatal(err)
	}
	next := launch(t, at, 2, 1, &wrong)
	defer next.die()
	defer next.Leave()
	if err := next.Settle(old.Inodes()); err != nil {
		t.Fatal(err)
	}
	next.sockets[0].control = func(func(fd int) error) error { return ErrUnreachable }
	if err := next.Switch(); !errors.Is(err, ErrUnreachable) {
		t.Errorf("switched to a socket whose gate is shut: %v", err)
	}
	c, err := net.DialTimeout("tcp", at.String(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if answer, err := io.ReadAll(c); string(answer) != "1" {
		t.Errorf("%q answers, %v; want the old generation", answer, err)
	}
	next.lns[0].Close()
	if err := next.openLocked(); err != nil {
		t.Errorf("a socket that is gone: %v", err)
	}
}

// TestSteered: what comes beside a socket that has the clients is not in the steering yet, and alone it has none.
func TestSteered(t *testing.T) {
	var wrong atomic.Int64
	at := freeAddress(t, "tcp")
	g := launch(t, at, 1, 1, &wrong)
	defer g.die()
	defer g.Leave()
	if err := g.Settle(nil); err != nil {
		t.Fatal(err)
	}
	if g.Steered() {
		t.Error("it is steered before the switch")
	}
	if err := g.Switch(); err != nil {
		t.Fatal(err)
	}
	first := g.Inodes()[0]
	late := launch(t, at, 1, 1, &wrong)
	defer late.die()
	defer late.Leave()
	g.Adopt(late.Inodes()[0], nil)
	if !g.Steered() {
		t.Error("the first socket is not steered")
	}
	g.Drop(first)
	if g.Steered() {
		t.Error("the second socket is steered, and nobody attached that")
	}
	if err := g.Reclaim(); err != nil {
		t.Fatal(err)
	}
	if !g.Steered() {
		t.Error("the second socket is not steered")
	}
}
