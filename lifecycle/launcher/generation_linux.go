package launcher

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"overlap/health"
	"overlap/health/notify"
	"overlap/lifecycle/control"
	"overlap/lifecycle/internal/trial"
	"overlap/lifecycle/owner"
	"overlap/lifecycle/process"
	"overlap/reuse"
)

// errNeverReady is wrapped by the errors of a program that did not get so far.
var errNeverReady = errors.New("the program never became ready")

// errStopping is why a start is given up when the launcher is told to stop.
var errStopping = errors.New("the launcher is stopping")

// errSuperseded is why a program that ended is not started again after all.
var errSuperseded = errors.New("a newer generation serves")

// request is what a generation is made of.
type request struct {
	command []string
	dir     string
	env     []string
	set     *settings
	token   string
	timeout time.Duration // of the start; 0 is the launcher's
	instead *generation   // whose program ended, where this is its restart
}

// wanted reports why a start is not needed any more: while a restart waited for a handover that was
// under way, somebody else's program has taken over.
func (r request) wanted() error {
	if r.instead != nil && r.instead.owner.Handed() {
		return errSuperseded
	}
	return nil
}

// generation is one program as a generation of the service.
type generation struct {
	l       *launcher
	req     request
	log     *slog.Logger
	owner   *owner.Owner
	program *program
	sockets *sockets
	notify  *notify.Socket
	known   *control.Server // where the program finds out whose it is

	drainTimeout time.Duration // of this drain, if somebody asked for another than the setting
	leaveBy      time.Time     // when its drain is over
	orphans      context.Context
	cutOrphans   context.CancelFunc

	adopted *adoption // of --adopt, else nil

	launched   chan struct{} // closed when program is what it will be
	stops      chan time.Duration
	cutting    chan struct{}
	handedOver atomic.Bool
	holding    atomic.Bool
	selfDrains atomic.Bool  // it uses the library, or says so
	stopped    atomic.Bool  // it was sent the stop signal
	lingered   atomic.Int64 // connections left when it was waited for; -1: it was not
	killed     atomic.Bool  // its start was given up while the program ran
	restarting chan struct{}
	lastTry    *generation             // to start it again, which failed; read when restarting is closed
	abort      context.CancelCauseFunc // ends a start; with l.mu
	done       chan struct{}           // closed when it is over
	err        error
}

func (l *launcher) newGeneration(r request) *generation {
	g := &generation{l: l, req: r, log: l.log, drainTimeout: r.set.DrainTimeout, launched: make(chan struct{}), stops: make(chan time.Duration, 1), cutting: make(chan struct{}),
		restarting: make(chan struct{}), done: make(chan struct{})}
	g.sockets = newSockets(g)
	g.orphans, g.cutOrphans = context.WithCancel(context.Background())
	l.mu.Lock()
	l.all[g] = true
	l.mu.Unlock()
	return g
}

// start is the way to the switch. When it fails the generation is over, and the one before
// serves on. When it succeeds the generation serves in a goroutine of its own.
func (g *generation) start(ctx context.Context) error {
	timeout := g.req.timeout
	if timeout <= 0 {
		timeout = g.req.set.StartTimeout
	}
	ctx, abort := context.WithCancelCause(ctx)
	defer abort(nil)
	g.l.mu.Lock()
	g.abort = abort
	stopping := g.l.stopping
	g.l.mu.Unlock()
	if stopping {
		abort(errStopping)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := g.begin(ctx, timeout)
	if err == nil {
		g.l.events <- happening{kind: switchedTo, gen: g}
		go g.serve()
		return nil
	}
	if g.owner != nil {
		g.owner.Tell(context.WithoutCancel(ctx), "failed", err.Error())
	}
	g.giveUp()
	g.over(err)
	g.adopted.undo()
	return err
}

// lastWords is how long a program whose start is given up has between the stop signal and
// SIGKILL: it has no clients, and somebody waits for the outcome.
const lastWords = time.Second

// giveUp ends the program of a start that failed.
func (g *generation) giveUp() {
	if _, ended := g.exitCode(); !ended && g.program != nil {
		g.killed.Store(true)
		g.stopped.Store(true)
		g.program.signal(g.req.set.StopSignal)
		select {
		case <-g.program.gone():
		case <-time.After(lastWords):
		}
	}
	g.program.kill()
}

func (g *generation) begin(ctx context.Context, timeout time.Duration) error {
	l := g.l
	adopted, err := l.adoptee(g)
	if err != nil {
		return err
	}
	o, err := owner.Enter(ctx, owner.Config{Name: l.opt.Name, Default: l.isDefault, Root: l.root,
		Command: g.req.command, Directory: g.req.dir, StopSignal: g.req.set.StopSignal, Launched: true, Supervised: supervised(), Token: g.req.token,
		StartTimeout: timeout, ReloadTimeout: g.req.set.StartTimeout, Body: (*body)(g), Log: l.log, UID: -1, Adopt: adopted,
		Wanted: g.req.wanted, Borrow: borrowFromOrphan})
	if err != nil {
		return err
	}
	g.owner = o
	g.log = l.log.With("generation", o.Number())
	defer g.heedStops()()
	if err := l.readyOrphan(ctx, g); err != nil {
		return err
	}
	if err := g.listenToProgram(); err != nil {
		return err
	}
	trial.At("entered")
	g.program, err = startProgram(g)
	close(g.launched)
	if err != nil {
		return err
	}
	o.Record(g.program.identity())
	trial.At("started")
	if err := g.sockets.await(ctx); err != nil {
		return err
	}
	trial.At("listening")
	if err := o.Settle(ctx); err != nil {
		return err
	}
	trial.At("settled")
	if err := g.check(ctx, timeout); err != nil {
		return err
	}
	g.awaitAccepting(ctx)
	trial.At("healthy")
	o.Tell(ctx, "healthy", "")
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := o.Switch(ctx); err != nil {
		return err
	}
	g.sockets.follow()
	g.l.terminal.give(g.program.pid())
	g.l.drainOrphans(g)
	if err := notify.Send(fmt.Sprintf("READY=1\nMAINPID=%d", os.Getpid())); err != nil {
		g.log.Warn("the service manager was not told", "error", err)
	}
	return nil
}

// heedStops has a stop that somebody asks for end the launcher before the generation serves too.
func (g *generation) heedStops() (undo func()) {
	begun, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case req := <-g.owner.Stops():
				g.l.stop(syscall.SIGTERM, req.Timeout)
			case <-begun:
				return
			}
		}
	}()
	return func() { close(begun); <-done }
}

// listenToProgram opens the generation's own NOTIFY_SOCKET, and the socket where a server with the
// library finds out that it has a launcher. Root's program may have become any user by then, so
// anybody can connect to root's, and who does is looked at. They are files, though in the abstract namespace
// no directory would be in the way, because many programs take NOTIFY_SOCKET for a path (Puma, Sidekiq).
func (g *generation) listenToProgram() (err error) {
	dir, n := g.owner.Dir(), g.owner.Number()
	mode := fs.FileMode(0o600)
	if os.Geteuid() == 0 {
		mode = 0o666
	}
	if err := dir.LetThrough(); err != nil && g.l.serving() == nil {
		g.log.Info("a program that gives up root can't say that it is ready, nor find its launcher with the library; chmod o+x lifts it", "because", err)
	}
	g.notify, err = notify.Listen(dir.NotifyPath(n), mode, func(m notify.Message) bool {
		if !g.mine(m.Pid) {
			return false
		}
		if m.Vars["X_OVERLAP_DRAINS"] == "1" {
			g.selfDrains.Store(true)
		}
		return true
	})
	if err != nil {
		return fmt.Errorf("notify socket: %w", err)
	}
	descends := func(pid int) bool { return process.Descends(pid, os.Getpid()) }
	g.known, err = control.Introduce(dir.LauncherPath(n), mode, descends, g.brief, g.log)
	return err
}

// brief is what the program is told.
func (g *generation) brief() control.Status {
	s := g.owner.Status()
	me := s.Generations[0]
	return control.Status{Service: s.Service,
		Generations: []control.Generation{{Generation: me.Generation, State: me.State, Owner: me.Owner}}}
}

// mine reports whether a process is of the generation's program. One that speaks up before its
// launcher has come back from starting it waits for that.
func (g *generation) mine(pid int) bool {
	<-g.launched
	for _, p := range g.program.tree() {
		if p == pid {
			return true
		}
	}
	return false
}

// check waits for the probes.
func (g *generation) check(ctx context.Context, timeout time.Duration) error {
	addresses, unreachable := g.owner.Addresses()
	private, err := newRelay(g, addresses)
	if err != nil {
		return err
	}
	defer private.close()
	gate := health.Gate{StartTimeout: timeout}
	err = gate.Wait(ctx, health.Target{Dial: g.owner.Dial, Addresses: addresses, Unreachable: unreachable,
		Env: append(slices.Clone(g.program.env), private.env()...), Dir: g.req.dir, Start: g.l.reaper.start,
		Ready: g.notify.Ready(), Gone: g.program.gone(), Alive: g.program.alive}, g.req.set.probes...)
	if err != nil {
		return fmt.Errorf("%w: %w", errNeverReady, err)
	}
	return nil
}

// acceptTime is how long a program that has passed its check may take until it accepts.
const acceptTime = time.Second

// awaitAccepting waits until the program has accepted what the check connected: a master listens
// before its workers are there, and clients would wait for them, while the old ones still accept.
func (g *generation) awaitAccepting(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, acceptTime)
	defer cancel()
	if err := reuse.AwaitAccepted(ctx, g.owner.Members()...); err != nil {
		g.log.Warn("the program listens, but does not accept yet", "error", err)
	}
}

// serve waits for the generation's end.
func (g *generation) serve() {
	for {
		handover := false
		select {
		case <-g.owner.Superseded():
			handover = true
			g.log.Info("a newer generation serves, draining")
		case d := <-g.stops:
			handover = g.owner.Superseding()
			if d > 0 {
				g.drainTimeout = d
			}
		case req := <-g.owner.Stops():
			if g.l.stop(syscall.SIGTERM, req.Timeout) {
				continue // it comes back through stops
			}
		case <-g.program.gone():
			if g.crashed() {
				continue
			}
			return
		}
		err := g.drain(handover)
		for !handover && errors.Is(err, owner.ErrTakenBack) {
			err = g.drain(false) // a stop remains one when who switched meanwhile has died
		}
		if errors.Is(err, owner.ErrTakenBack) {
			g.l.events <- happening{kind: tookBack, gen: g}
			continue
		}
		g.handedOver.Store(handover)
		g.over(g.endOfProgram())
		return
	}
}

// crashed deals with the end of a program that nobody asked for: the generation goes on without
// one, until its successor has started. It reports true where that died too.
func (g *generation) crashed() bool {
	g.log.Warn("the program ended", "status", g.program.words())
	over := func(err error) {
		g.leaveBy = time.Now().Add(g.drainTimeout)
		g.program.kill() // a worker would serve on
		g.over(err)
	}
	if g.l.isStopping() || g.owner.GiveBack(context.Background()) {
		over(g.endOfProgram())
		return false
	}
	g.holding.Store(true)
	g.owner.Hold()
	if g.req.set.Hold <= 0 {
		g.owner.LetGo()
	}
	g.l.events <- happening{kind: crashed, gen: g}
	for {
		select {
		case <-g.owner.Superseded():
			if errors.Is(g.drain(true), owner.ErrTakenBack) {
				return true // to be started again
			}
			g.handedOver.Store(true)
			g.over(nil) // the drain has killed it
		case req := <-g.owner.Stops():
			if g.l.stop(syscall.SIGTERM, req.Timeout) {
				continue // it comes back through stops
			}
			over(nil)
		case d := <-g.stops:
			if d > 0 {
				g.drainTimeout = d
			}
			over(nil)
		case <-g.restarting: // given up
			over(g.endOfRestarts())
		}
		return false
	}
}

// endOfRestarts is what the launcher ends with when the program could not be started again: as the
// last try did, where its program ended by itself.
func (g *generation) endOfRestarts() error {
	if g.lastTry != nil {
		if code, ended := g.lastTry.exitCode(); ended && code != 0 {
			return g.lastTry.endOfProgram()
		}
	}
	return g.endOfProgram()
}

// drain ends the program from outside.
func (g *generation) drain(handover bool) error {
	g.leaveBy = time.Now().Add(g.drainTimeout)
	ctx, cancel := context.WithTimeout(context.Background(), g.drainTimeout)
	defer cancel()
	finished := make(chan struct{})
	defer close(finished)
	go func() {
		select {
		case <-g.cutting:
			g.owner.Final()
			cancel()
		case <-finished:
		}
	}()
	g.sockets.beginDrain()
	if !handover {
		notify.Send("STOPPING=1")
	}
	r, err := g.owner.Drain(ctx, handover)
	if err != nil {
		g.sockets.endDrain()
		return err
	}
	g.log.Info("drained", "finished", r.Finished, "cut", r.Cut, "backlog", r.Backlog, "total", r.Total,
		"handover", handover, "status", g.program.words())
	return nil
}

// over closes what the generation has, and tells the launcher.
func (g *generation) over(err error) {
	g.program.close() // a bind that is still looked at would leave a placeholder behind
	late := time.AfterFunc(time.Until(g.leaveBy), g.cutOrphans)
	g.sockets.close() // waits for what it drains of others
	late.Stop()
	g.cutOrphans()
	if g.notify != nil {
		g.notify.Close() // before the number is free for the next one
	}
	if g.known != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		g.known.Close(ctx)
		cancel()
	}
	if g.owner != nil {
		g.owner.Close()
	}
	g.err = err
	close(g.done)
	g.l.events <- happening{kind: ended, gen: g, err: err}
}

// endOfProgram is what the launcher ends with when this was its last program.
func (g *generation) endOfProgram() error {
	code, ok := g.program.code()
	if !ok || code == 0 || g.stopped.Load() && code == exitSignalBase+int(g.req.set.StopSignal) {
		return nil
	}
	return &ExitError{Code: code, Err: fmt.Errorf("the program ended with %s", g.program.words())}
}

// exitCode is what the program ended with by itself; false where it did not.
func (g *generation) exitCode() (int, bool) {
	if g.program == nil || g.killed.Load() {
		return 0, false
	}
	return g.program.code()
}

func (g *generation) stop(timeout time.Duration) {
	select {
	case g.stops <- timeout:
	default:
	}
}

func (g *generation) cut() {
	select {
	case <-g.cutting:
	default:
		close(g.cutting)
	}
	g.cutOrphans()
}

func (g *generation) signal(s syscall.Signal) { g.running().signal(s) }

// running is the program as other goroutines than the start's may see it, nil until it was
// started.
func (g *generation) running() *program {
	select {
	case <-g.launched:
		return g.program
	default:
		return nil
	}
}
