package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	reuseport "github.com/libp2p/go-reuseport"

	"overlap/health/notify"
	"overlap/lifecycle/control"
	"overlap/lifecycle/process"
	"overlap/reuse"
)

// envOwner names the socket where the launcher that speaks for this process says so.
const envOwner = "OVERLAP_OWNER"

// guest is a generation whose owner is the launcher that started the process: it listens, says
// READY=1, drains on SIGTERM, and leaves everything else to the launcher. So there is one steering
// hand for each service.
type guest struct {
	number  int
	now     atomic.Value // State
	packets list[*reuse.PacketConn]
	lns     list[net.Listener]
	unix    list[*reuse.UnixListener]
}

// list is a slice that several goroutines may add to.
type list[T any] struct {
	mu    sync.Mutex
	items []T
}

func (l *list[T]) add(item T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.items = append(l.items, item)
}

func (l *list[T]) all() []T {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.items)
}

// launcherTime is how long a launcher may take to answer.
const launcherTime = 5 * time.Second

// findGuest returns nil where no launcher speaks for this process. It believes the launcher, not
// an inherited variable: the process at the other end of the socket must be an ancestor. One that may be
// there and can't be asked is an error, for without it there would be two steering hands.
func findGuest(ctx context.Context) (*guest, error) {
	path := os.Getenv(envOwner)
	number, err := strconv.Atoi(os.Getenv("OVERLAP_GENERATION"))
	if path == "" || err != nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, launcherTime)
	defer cancel()
	status, err := control.Dial(path).Brief(ctx)
	switch {
	case err != nil && nobodys(err):
		return nil, nil
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("find the launcher that %s names, whose directory must let this process's user through (chmod o+x): %w", envOwner, err)
	case err != nil:
		return nil, fmt.Errorf("find the launcher that %s names: %w", envOwner, err)
	case len(status.Generations) != 1:
		return nil, nil
	}
	if g := status.Generations[0]; g.Generation != number || g.State != Starting || !process.Descends(os.Getpid(), g.Owner) {
		return nil, nil
	}
	g := &guest{number: number}
	g.now.Store(Starting)
	return g, nil
}

// nobodys reports whether a launcher could not be asked because it is dead, or is not this process's.
func nobodys(err error) bool {
	var refused *control.StatusError
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, control.ErrNoOutcome) ||
		errors.As(err, &refused)
}

func (g *guest) state() State { return g.now.Load().(State) }

// listen opens an ordinary listener that shares its port; the launcher sees to the rest.
func (g *guest) listen(ctx context.Context, network, addr string) (net.Listener, error) {
	if network == "unix" {
		l, err := reuse.ListenUnix(ctx, addr, sibling)
		if err != nil {
			return nil, err
		}
		g.unix.add(l)
		return l, nil
	}
	a, err := reuse.ParseAddress(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: reuseport.Control}
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(ctx, a.Net(), a.String())
	if err != nil {
		return nil, err
	}
	g.lns.add(ln)
	return ln, nil
}

func (g *guest) listenPacket(ctx context.Context, network, addr string) (net.PacketConn, error) {
	a, err := reuse.ParseAddress(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: reuseport.Control}
	udp, err := lc.ListenPacket(ctx, a.Net(), a.String())
	if err != nil {
		return nil, err
	}
	pc := reuse.NewPacketConn(udp.(*net.UDPConn))
	g.packets.add(pc)
	return pc, nil
}

// sibling reports whether a unix listener belongs to a process of the same launcher.
func sibling(ino uint64) bool {
	owners, err := reuse.Holders(ino)
	if err != nil {
		return false
	}
	for _, pid := range owners {
		if process.Parent(pid) == os.Getppid() {
			return true
		}
	}
	return false
}

// runGuest is Run under a launcher.
func (g *Generation) runGuest(ctx context.Context, sig *signals) error {
	signal.Ignore(syscall.SIGHUP, syscall.SIGUSR2)
	g.servers.start()
	if g.opt.BeforeReady != nil {
		if err := g.opt.BeforeReady(); err != nil {
			return fmt.Errorf("before ready: %w", err)
		}
	}
	for _, l := range g.guest.unix.all() {
		if err := l.Publish(); err != nil {
			return err
		}
	}
	if err := notify.Send("READY=1\nX_OVERLAP_DRAINS=1"); err != nil {
		return fmt.Errorf("tell the launcher: %w", err)
	}
	g.guest.now.Store(Serving)
	var failure error
	select {
	case <-sig.stops:
	case <-ctx.Done():
	case <-g.stopping:
	case failure = <-g.servers.failed:
	}
	g.guest.now.Store(Draining)
	ctx, cancel := context.WithTimeout(context.Background(), g.opt.DrainTimeout)
	defer cancel()
	(*body)(g).Announce()
	g.servers.closing()
	for _, ln := range g.guest.lns.all() {
		ln.Close()
	}
	for _, pc := range g.guest.packets.all() {
		pc.CloseRead() // what was read is still answered
		defer pc.Close()
	}
	for _, l := range g.guest.unix.all() {
		l.Close()
	}
	r := (*body)(g).Finish(ctx)
	if g.opt.AfterDrain != nil {
		g.opt.AfterDrain(r)
	}
	if r.Cut > 0 {
		failure = errors.Join(failure, fmt.Errorf("drain: %d connections: %w", r.Cut, ErrCut))
	}
	return failure
}
