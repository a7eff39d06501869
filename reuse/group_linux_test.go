package reuse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// generation is a member whose sockets answer with the generation's number.
type generation struct {
	*Member
	number int
	since  atomic.Int64 // when it was switched to, in ns since the world began; 0 never
	until  atomic.Int64 // when the next one was
	conns  sync.WaitGroup
	lns    []net.Listener
}

var allAddresses = []string{"127.0.0.1:0", "[::1]:0", "[::]:0"}

func resolve(t testing.TB, network, addr string) Address {
	t.Helper()
	a, err := ParseAddress(context.Background(), network, addr)
	if err != nil {
		t.Fatal(err)
	}
	if a.AddrPort.Addr().Is6() && !hasLoopback6() {
		t.Skip("no IPv6 here")
	}
	return a
}

func join(t testing.TB, a Address, number, sockets int) *generation {
	t.Helper()
	return joinWith(t, Open(a, -1), number, sockets)
}

// joinWith has a member listen with so many sockets.
func joinWith(t testing.TB, m *Member, number, sockets int) *generation {
	t.Helper()
	g := &generation{Member: m, number: number}
	for range sockets {
		ln, err := g.Listen(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		g.lns = append(g.lns, ln)
		g.conns.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(c, "%d", number)
				c.Close()
			}
		})
	}
	t.Cleanup(func() { g.Leave(); g.conns.Wait() })
	return g
}

// land connects and returns the number that answered.
func land(network, addr string) (int, error) {
	n, _, err := landOnce(network, addr)
	return n, err
}

// landOnce tells too whether the SYN had to be sent again. How long it took would not tell: the
// machine may be busy.
func landOnce(network, addr string) (n int, again bool, err error) {
	c, err := net.DialTimeout(network, addr, 20*time.Second)
	if err != nil {
		return 0, false, err
	}
	if raw, err := c.(syscall.Conn).SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			again = err == nil && info.Total_retrans > 0
		})
	}
	n, err = read(c)
	return n, again, err
}

func read(c net.Conn) (int, error) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	b, err := io.ReadAll(c)
	if err != nil {
		return 0, err
	}
	var n int
	_, err = fmt.Sscan(string(b), &n)
	return n, err
}

func mustLand(t *testing.T, a Address, want int) {
	t.Helper()
	for range 10 {
		n, err := land(a.Network, a.Local().String())
		if err != nil || n != want {
			t.Fatalf("landed on %d, %v; want %d", n, err, want)
		}
	}
}

func first(t testing.TB, a Address, sockets int) *generation {
	t.Helper()
	g := join(t, a, 1, sockets)
	if err := g.Settle(nil); err != nil {
		t.Fatal(err)
	}
	if err := g.Switch(); err != nil {
		t.Fatal(err)
	}
	return g
}

// TestHandover goes through one handover on each kind of address: the starting generation gets
// nothing but its probe, the serving one everything.
func TestHandover(t *testing.T) {
	for _, addr := range allAddresses {
		for _, sockets := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s/%d", addr, sockets), func(t *testing.T) {
				a := first(t, resolve(t, "tcp", addr), sockets)
				at := a.Address()
				mustLand(t, at, 1)
				if err := a.Reserve(); err != nil {
					t.Fatal(err)
				}
				b := join(t, at, 2, sockets)
				mustLand(t, at, 1)
				a.Yield()
				if err := b.Settle(a.Inodes()); err != nil {
					t.Fatal(err)
				}
				c, err := b.DialProbe(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				if n, err := read(c); n != 2 || err != nil {
					t.Fatalf("the probe landed on %d, %v", n, err)
				}
				mustLand(t, at, 1)
				if err := b.Switch(); err != nil {
					t.Fatal(err)
				}
				mustLand(t, at, 2)
				a.Leave()
				mustLand(t, at, 2)
			})
		}
	}
}

// TestFirstGenerationIsGated: nobody reaches a generation before its switch, also the first.
func TestFirstGenerationIsGated(t *testing.T) {
	g := join(t, resolve(t, "tcp", "127.0.0.1:0"), 1, 1)
	if err := g.Settle(nil); err != nil {
		t.Fatal(err)
	}
	d := net.Dialer{Timeout: 200 * time.Millisecond}
	if c, err := d.Dial("tcp", g.Address().String()); err == nil {
		c.Close()
		t.Fatal("a client reached a generation that was never checked")
	}
	c, err := g.DialProbe(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if n, err := read(c); n != 1 || err != nil {
		t.Fatal(n, err)
	}
}

// TestProbePort: a client that has the probe's port at another address is no probe.
func TestProbePort(t *testing.T) {
	a := first(t, resolve(t, "tcp", "0.0.0.0:0"), 1)
	a.Reserve()
	b := join(t, a.Address(), 2, 1)
	a.Yield()
	if err := b.Settle(a.Inodes()); err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	from := netip.MustParseAddrPort("127.0.0.1:0")
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.5:0")
		if err != nil {
			t.Fatal(err)
		}
		port := uint16(l.Addr().(*net.TCPAddr).Port)
		l.Close()
		from = netip.AddrPortFrom(from.Addr(), port)
		if err := b.attachLocked(probeProgram("tcp", from, b.places, b.serving)); err != nil {
			t.Fatal(err)
		}
		d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 5), Port: int(port)}}
		c, err := d.Dial("tcp", a.Address().Local().String())
		if err != nil {
			t.Fatal(err)
		}
		if n, err := read(c); n != 1 || err != nil {
			t.Fatalf("landed on %d, %v", n, err)
		}
	}
	b.mu.Unlock()
}

// TestLocateUnderNoise finds the places while clients are being dropped all the time.
func TestLocateUnderNoise(t *testing.T) {
	a := first(t, resolve(t, "tcp", "127.0.0.1:0"), 3)
	at := a.Address()
	b := join(t, at, 2, 2)
	ctx, stop := context.WithCancel(context.Background())
	var noise sync.WaitGroup
	noise.Go(func() {
		for ctx.Err() == nil {
			for range 4 {
				sendLocator(at, rand.IntN(5))
			}
			time.Sleep(200 * time.Microsecond)
		}
	})
	defer func() { stop(); noise.Wait() }()
	want := append(a.Inodes(), b.Inodes()...)
	for range 10 {
		got, err := locate(at)
		if err != nil {
			t.Log(err) // it may say that it can't, but must not err
			continue
		}
		if !slices.Equal(got, want) {
			t.Fatalf("located %v, want %v", got, want)
		}
	}
}

// world drives random sequences of joins, leaves, crashes and switches, with clients all the while.
type world struct {
	t       *testing.T
	rnd     *rand.Rand
	addr    Address
	began   time.Time
	mu      sync.Mutex // guards gens, crashes, delayed
	gens    map[int]*generation
	serving *generation
	number  int
	landed  atomic.Int64
	wrong   atomic.Int64
	refused atomic.Int64
	leaving sync.WaitGroup
	crashes []span // when sockets were closed with nothing hidden
	delayed []span // when a SYN was sent that had to be sent again, a second later (TCP_RTO_INITIAL)
}

// span is in ns since the world began.
type span struct{ from, to int64 }

func (w *world) now() int64 { return int64(time.Since(w.began)) + 1 }

func (w *world) client(ctx context.Context) {
	for ctx.Err() == nil {
		start := w.now()
		n, again, err := landOnce("tcp", w.addr.Local().String())
		end := w.now()
		if err != nil {
			w.refused.Add(1)
			w.t.Errorf("a connection failed: %v", err)
			continue
		}
		w.landed.Add(1)
		if again {
			w.mu.Lock()
			w.delayed = append(w.delayed, span{start, end - int64(time.Second)})
			w.mu.Unlock()
		}
		w.mu.Lock()
		g := w.gens[n]
		w.mu.Unlock()
		from, to := g.since.Load(), g.until.Load()
		if from == 0 || from > end || to != 0 && to < start {
			w.wrong.Add(1)
			w.t.Errorf("a connection landed on generation %d, which served from %d to %d, at %d to %d", n, from, to, start, end)
		}
	}
}

func (w *world) newcomer() *generation {
	if err := w.serving.Reserve(); err != nil {
		w.t.Fatal(err)
	}
	w.number++
	g := join(w.t, w.addr, w.number, 1+w.rnd.IntN(3))
	w.mu.Lock()
	w.gens[g.number] = g
	w.mu.Unlock()
	return g
}

func (w *world) settle(g *generation) {
	w.serving.Yield()
	if err := g.Settle(w.serving.Inodes()); err != nil {
		w.t.Fatal(err)
	}
}

// crash closes all of a generation's sockets in the order SIGKILL does: from the highest
// descriptor down, with nothing hidden.
func (g *generation) crash() {
	g.mu.Lock()
	g.closed = true
	for _, h := range slices.Backward(g.holders) {
		closeFD(h.fd)
	}
	g.holders = nil
	for _, s := range slices.Backward(g.sockets) {
		if !s.gone {
			s.gone = true
			s.close()
		}
	}
	g.mu.Unlock()
}

func (w *world) crash(g *generation) {
	from := w.now()
	g.crash()
	to := w.now()
	w.mu.Lock()
	w.crashes = append(w.crashes, span{from, to})
	w.mu.Unlock()
}

// unexplained are the delays without a crash meanwhile. A SYN that finds a socket in the microsecond in which
// it is closed gets nowhere, and who crashes can't hide its sockets first.
func (w *world) unexplained() []span {
	return slices.DeleteFunc(slices.Clone(w.delayed), func(d span) bool {
		return slices.ContainsFunc(w.crashes, func(c span) bool { return c.from <= d.to && d.from <= c.to })
	})
}

func (w *world) retire(old *generation) {
	old.Recede()
	if err := AwaitBacklogOf(context.Background(), old.Member); err != nil {
		w.t.Error(err)
	}
	old.Leave()
}

func (w *world) highest() int {
	w.serving.mu.Lock()
	defer w.serving.mu.Unlock()
	return slices.Max(w.serving.places)
}

func (w *world) step() {
	old := w.serving
	g := w.newcomer()
	switch kind := w.rnd.IntN(10); {
	case kind < 2: // fails its check
		w.settle(g)
		if c, err := g.DialProbe(context.Background()); err != nil {
			w.t.Error(err)
		} else {
			read(c)
		}
		g.Leave()
	case kind == 2: // crashes before it has settled
		w.crash(g)
	case kind == 3: // crashes after that
		w.settle(g)
		w.crash(g)
	default:
		w.settle(g)
		g.since.Store(w.now())
		if err := g.Switch(); err != nil {
			w.t.Fatal(err)
		}
		old.until.Store(w.now())
		w.serving = g
		if kind < 7 {
			w.retire(old)
		} else {
			w.leaving.Go(func() { w.retire(old) })
		}
		return
	}
	if err := old.Reclaim(); err != nil {
		w.t.Error(err)
	}
}

// TestRandomSequences: no connection lands on a generation that is starting, hidden or gone, and
// none is refused or reset, or delayed by more than a crash explains.
func TestRandomSequences(t *testing.T) {
	for _, addr := range allAddresses {
		t.Run(addr, func(t *testing.T) {
			s := *seed
			if s == 0 {
				s = rand.Uint64()
			}
			t.Logf("-seed %d", s)
			w := &world{t: t, rnd: rand.New(rand.NewPCG(s, 1)), began: time.Now(), gens: map[int]*generation{}, number: 1}
			w.serving = first(t, resolve(t, "tcp", addr), 1+w.rnd.IntN(3))
			w.addr = w.serving.Address()
			w.serving.since.Store(1)
			w.gens[1] = w.serving
			ctx, stop := context.WithCancel(context.Background())
			var clients sync.WaitGroup
			for range 8 {
				clients.Go(func() { w.client(ctx) })
			}
			highest := 0
			for range 40 {
				w.step()
				highest = max(highest, w.highest())
			}
			w.leaving.Wait()
			for range 2 { // with nobody else leaving, the places are the first ones again
				old, g := w.serving, w.newcomer()
				w.settle(g)
				g.since.Store(w.now())
				if err := g.Switch(); err != nil {
					t.Fatal(err)
				}
				old.until.Store(w.now())
				w.serving = g
				w.retire(old)
			}
			last := w.highest()
			stop()
			clients.Wait()
			t.Logf("%d connections, %d delayed, highest serving place %d", w.landed.Load(), len(w.delayed), highest)
			if d := w.unexplained(); len(d) > 0 {
				t.Errorf("connections were delayed, and not by a crash: %v; crashes: %v", d, w.crashes)
			}
			// With 3 sockets at most: 3 of the one before, 2 placeholders that make room, 2 behind,
			// and the newcomer's last.
			if last > 8 {
				t.Errorf("the places grow: the last generation serves from place %d", last)
			}
		})
	}
}

// TestAnchorBehindNobody: who was to be taken over from can die before the placeholder comes.
func TestAnchorBehindNobody(t *testing.T) {
	a := first(t, resolve(t, "tcp", "127.0.0.1:0"), 1)
	died := a.Inodes()
	a.Leave()
	m := Open(a.Address(), -1)
	defer m.Leave()
	err := m.AnchorBehind(died, func(uint64, func(int) error) error { return ErrUnreachable })
	if err != nil {
		t.Fatal(err)
	}
	b := join(t, m.Address(), 2, 1)
	if err := b.Settle(nil); err != nil {
		t.Fatal(err)
	}
	if err := b.Switch(); err != nil {
		t.Fatal(err)
	}
	mustLand(t, m.Address(), 2)
}

// TestHold keeps clients waiting until somebody serves again.
func TestHold(t *testing.T) {
	a := first(t, resolve(t, "tcp", "127.0.0.1:0"), 1)
	if err := a.Anchor(); err != nil {
		t.Fatal(err)
	}
	if err := a.Hold(); err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		n, again, err := landOnce("tcp", a.Address().String())
		if err == nil && (n != 1 || !again) {
			err = fmt.Errorf("landed on %d, SYN sent again: %v", n, again)
		}
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("a client got through: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if err := a.Reclaim(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

// TestSplit gives a part of the connections to the newcomer.
func TestSplit(t *testing.T) {
	a := first(t, resolve(t, "tcp", "127.0.0.1:0"), 1)
	b := join(t, a.Address(), 2, 1)
	if err := b.Settle(a.Inodes()); err != nil {
		t.Fatal(err)
	}
	if err := b.Split(25); err != nil {
		t.Fatal(err)
	}
	count := map[int]int{}
	for range 400 {
		n, err := land("tcp", a.Address().String())
		if err != nil {
			t.Fatal(err)
		}
		count[n]++
	}
	// 100 are expected, with a deviation of 8.7; 40 to 160 is seven of them.
	if count[2] < 40 || count[2] > 160 || count[1]+count[2] != 400 {
		t.Fatalf("25 percent of 400 connections: %v", count)
	}
	if err := b.Split(101); err == nil {
		t.Fatal("101 percent were accepted")
	}
}

// TestPrograms runs programs over packets in the virtual machine of golang.org/x/net/bpf's
// length checks: that they assemble, for many places too.
func TestPrograms(t *testing.T) {
	var many []int
	for i := range MaxPlaces {
		if i != 3 {
			many = append(many, i)
		}
	}
	src := netip.MustParseAddrPort("[::1]:4000")
	for _, network := range []string{"tcp", "udp"} {
		for name, p := range map[string][]bpf.Instruction{
			"serve": serveProgram(network, many),
			"probe": probeProgram(network, src, many, many),
			"split": splitProgram(network, 50, many, many),
		} {
			if _, err := assemble(p); err != nil {
				t.Errorf("%s %s: %v", name, network, err)
			}
		}
	}
}

// TestDatagrams hands a UDP address over: every datagram is answered by the serving generation.
func TestDatagrams(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(addr, func(t *testing.T) {
			at := resolve(t, "udp", addr)
			serve := func(number int) (*Member, *PacketConn, *sync.WaitGroup) {
				m := Open(at, -1)
				pc, err := m.ListenPacket(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				var done sync.WaitGroup
				done.Go(func() {
					b := make([]byte, 64)
					for {
						_, from, err := pc.ReadFromUDPAddrPort(b)
						if errors.Is(err, net.ErrClosed) {
							return
						}
						pc.WriteToUDPAddrPort([]byte{byte(number)}, from)
					}
				})
				at = m.Address()
				return m, pc, &done
			}
			ask := func() int {
				c, err := net.Dial("udp", at.String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(5 * time.Second))
				c.Write([]byte("x"))
				b := make([]byte, 1)
				if _, err := c.Read(b); err != nil {
					t.Fatal(err)
				}
				return int(b[0])
			}
			old, _, oldDone := serve(1)
			defer func() { old.Leave(); oldDone.Wait(); old.Release() }()
			if err := old.Settle(nil); err != nil {
				t.Fatal(err)
			}
			if err := old.Switch(); err != nil {
				t.Fatal(err)
			}
			if n := ask(); n != 1 {
				t.Fatal(n)
			}
			next, _, nextDone := serve(2)
			defer func() { next.Leave(); nextDone.Wait(); next.Release() }()
			if err := next.Settle(old.Inodes()); err != nil {
				t.Fatal(err)
			}
			for range 20 {
				if n := ask(); n != 1 {
					t.Fatal("a starting generation answered")
				}
			}
			c, err := next.DialProbe(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(5 * time.Second))
			c.Write([]byte("x"))
			b := make([]byte, 1)
			if _, err := c.Read(b); err != nil || b[0] != 2 {
				t.Fatalf("the probe got %d, %v", b[0], err)
			}
			c.Close()
			if err := next.Switch(); err != nil {
				t.Fatal(err)
			}
			if err := AwaitBacklogOf(context.Background(), old); err != nil {
				t.Fatal(err)
			}
			old.Leave()
			for range 20 {
				if n := ask(); n != 2 {
					t.Fatal("a generation that is gone answered")
				}
			}
		})
	}
}

// BenchmarkSwitch is the cost of a switch of one address.
func BenchmarkSwitch(b *testing.B) {
	a := first(b, resolve(b, "tcp", "127.0.0.1:0"), 1)
	next := join(b, a.Address(), 2, 1)
	if err := next.Settle(a.Inodes()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := next.Switch(); err != nil {
			b.Fatal(err)
		}
	}
}
