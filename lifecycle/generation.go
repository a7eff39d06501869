package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"

	"overlap/health"
	"overlap/lifecycle/control"
	"overlap/lifecycle/httpdrain"
	"overlap/lifecycle/owner"
	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
	"overlap/reuse"
)

// Errors that a caller may want to tell apart with errors.Is.
var (
	// ErrUnhealthy says that the generation did not pass its probes; the old one serves on.
	ErrUnhealthy = health.ErrUnhealthy
	// ErrBusy says that another handover of the service was under way all the time.
	ErrBusy = state.ErrBusy
	// ErrStranger says that a process that is not of the service listens on an address.
	ErrStranger = owner.ErrStranger
	// ErrCut says that the drain's time was over before all connections were.
	ErrCut = httpdrain.ErrCut
	// ErrSupervised says that the running generation must not exit, so nobody can take over.
	ErrSupervised = owner.ErrSupervised
	// ErrOverlap says that an address covers one of the running generation's without being
	// equal to it.
	ErrOverlap = owner.ErrOverlap
	// ErrOther says that a service of the same default name runs on other addresses.
	ErrOther = owner.ErrOther
)

// State is how far a generation has got.
type State = state.State

// The states of a generation.
const (
	Starting = state.Starting
	Serving  = state.Serving
	Draining = state.Draining
	Ended    = state.Ended
)

// Generation is this process as one generation of a service. Make one with [New], give it
// listeners and servers, and call Run once. Its methods are safe for concurrent use.
type Generation struct {
	opt   resolved
	log   *slog.Logger
	token string
	dir   string // the working directory by its name in $PWD

	entering sync.Mutex
	owner    *owner.Owner
	guest    *guest
	ran      bool
	closed   bool

	servers  servers
	watched  atomic.Bool // readiness says no
	ended    atomic.Bool
	draining chan struct{}
	drain    sync.Once
	stopping chan struct{}
}

// New checks the options. It touches nothing yet: no lock, no file, no socket.
func New(o Options) (*Generation, error) {
	r, err := o.resolve()
	if err != nil {
		return nil, err
	}
	g := &Generation{opt: r, log: r.Logger.With("service", r.Name), dir: process.WorkingDirectory(),
		draining: make(chan struct{}), stopping: make(chan struct{}, 1)}
	g.servers.log = g.log
	g.servers.failed = make(chan error, 1)
	return g, nil
}

// enter makes this process a generation, at the first need. The handover lock is held from
// here to the switch.
func (g *Generation) enter(ctx context.Context) error {
	g.entering.Lock()
	defer g.entering.Unlock()
	if g.closed || g.ended.Load() {
		return fmt.Errorf("generation: %w", os.ErrClosed)
	}
	if g.owner != nil || g.guest != nil {
		return nil
	}
	guest, err := findGuest(ctx)
	if err != nil {
		return err
	}
	if guest != nil {
		g.guest = guest
		g.log = g.log.With("generation", g.guest.number)
		return nil
	}
	token, ok := os.LookupEnv(envHandover)
	if ok {
		os.Unsetenv(envHandover)
		g.token = token
	}
	o, err := owner.Enter(ctx, owner.Config{Name: g.opt.Name, Default: g.opt.isDefault, Root: g.opt.root,
		Command: os.Args, Directory: g.dir, Supervised: os.Getpid() == 1, Token: g.token,
		StartTimeout: g.opt.StartTimeout, Body: (*body)(g), Log: g.log, UID: -1})
	if err != nil {
		return err
	}
	g.owner = o
	g.log = g.log.With("generation", o.Number())
	return nil
}

// Listen opens a listener on a network ("tcp", "tcp4", "tcp6", "unix") and address that the
// running generation may be listening on too. Nobody reaches it before [Generation.Run] has
// switched. It may be called several times for one address, for several accept queues. ctx
// bounds the wait for another handover.
func (g *Generation) Listen(ctx context.Context, network, addr string) (net.Listener, error) {
	if err := g.enter(ctx); err != nil {
		return nil, err
	}
	ln, err := g.listen(ctx, network, addr)
	g.tellRefused(ctx, err)
	return ln, err
}

// tellRefused lets whoever started this generation know why it is about to give up: the words
// of a generation that ends before Run would be lost.
func (g *Generation) tellRefused(ctx context.Context, err error) {
	if err != nil && g.owner != nil {
		g.owner.Tell(ctx, control.KindFailed, err.Error())
	}
}

func (g *Generation) listen(ctx context.Context, network, addr string) (net.Listener, error) {
	if g.guest != nil {
		return g.guest.listen(ctx, network, addr)
	}
	if network == "unix" {
		l, err := g.owner.Unix(ctx, addr)
		if err != nil {
			return nil, err // a typed nil would not be nil
		}
		return l, nil
	}
	m, err := g.member(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	l, err := m.Listen(ctx)
	if err != nil {
		return nil, err
	}
	return l, nil
}

// member is this generation's part of the group of an address.
func (g *Generation) member(ctx context.Context, network, addr string) (*reuse.Member, error) {
	a, err := reuse.ParseAddress(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return g.owner.Member(ctx, a)
}

// ListenPacket opens a UDP socket ("udp", "udp4", "udp6") that the running generation may have
// too. See [Generation.Listen].
func (g *Generation) ListenPacket(ctx context.Context, network, addr string) (net.PacketConn, error) {
	if err := g.enter(ctx); err != nil {
		return nil, err
	}
	pc, err := g.listenPacket(ctx, network, addr)
	g.tellRefused(ctx, err)
	return pc, err
}

func (g *Generation) listenPacket(ctx context.Context, network, addr string) (net.PacketConn, error) {
	if g.guest != nil {
		return g.guest.listenPacket(ctx, network, addr)
	}
	m, err := g.member(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	pc, err := m.ListenPacket(ctx)
	if err != nil {
		return nil, err
	}
	return pc, nil
}

// HTTP serves the listeners with srv once [Generation.Run] runs, and drains it without losing a
// request. srv must not be changed afterwards; its hooks still run.
func (g *Generation) HTTP(srv *http.Server, lns ...net.Listener) {
	g.servers.http(srv, false, "", "", lns)
}

// HTTPS is HTTP over TLS with a certificate and key from files, which may be empty where
// srv.TLSConfig has certificates.
func (g *Generation) HTTPS(srv *http.Server, cert, key string, lns ...net.Listener) {
	g.servers.http(srv, true, cert, key, lns)
}

// Serve runs serve with ln, and drain when the listener has been closed because the generation
// ends: it returns when everything is finished, or ctx ends. serve returning before that with an
// error ends the generation; what it returns after its listener was closed does not matter. drain may be nil.
func (g *Generation) Serve(ln net.Listener, serve func(net.Listener) error, drain func(context.Context) error) {
	g.servers.add(&server{name: ln.Addr().String(), serve: func() error { return serve(ln) }, finish: drain})
}

// ServePacket is Serve for a packet connection. Once its receive queue is empty its reads fail with net.ErrClosed;
// writes go on until drain has returned, for the answers that are still owed.
func (g *Generation) ServePacket(pc net.PacketConn, serve func(net.PacketConn) error, drain func(context.Context) error) {
	g.servers.add(&server{name: pc.LocalAddr().String(), serve: func() error { return serve(pc) }, finish: drain})
}

// Draining is closed when the generation ends and nothing can take it back: a newer one serves,
// or it was told to stop.
func (g *Generation) Draining() <-chan struct{} { return g.draining }

// State is how far the generation has got.
func (g *Generation) State() State {
	g.entering.Lock()
	o, guest := g.owner, g.guest
	g.entering.Unlock()
	switch {
	case g.ended.Load():
		return Ended
	case o != nil:
		return o.State()
	case guest != nil:
		return guest.state()
	}
	return Starting
}

// Number is the generation's number, from 1; 0 before the first Listen or Run.
func (g *Generation) Number() int {
	g.entering.Lock()
	defer g.entering.Unlock()
	switch {
	case g.owner != nil:
		return g.owner.Number()
	case g.guest != nil:
		return g.guest.number
	}
	return 0
}

// Readiness answers 200 while the generation starts or serves and 503 once it drains or is
// about to (ShutdownDelay). It is readiness, not liveness.
func (g *Generation) Readiness() http.Handler {
	return health.Readiness(func() bool { s := g.State(); return g.watched.Load() || s == Draining || s == Ended })
}

// Reload starts the next generation with the same command and environment, and returns nil when
// it serves. On an error this one serves on.
func (g *Generation) Reload(ctx context.Context) error {
	g.entering.Lock()
	o := g.owner
	g.entering.Unlock()
	if o == nil {
		return fmt.Errorf("reload: %w", errNotRunning)
	}
	if out := o.Reload(ctx, control.ReloadRequest{}, g.logEvent); out.Outcome != "switched" {
		return errors.New(out.Reason)
	}
	return nil
}

var errNotRunning = errors.New("the generation does not run by itself")

func (g *Generation) logEvent(e control.Event) {
	if e.Kind == "failed" {
		g.log.Error("reload failed, this generation serves on", "reason", e.Text)
		return
	}
	g.log.Info("reload", "step", e.Kind, "next", e.Generation, "text", e.Text)
}
