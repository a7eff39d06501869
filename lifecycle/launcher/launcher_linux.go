package launcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"overlap/lifecycle/owner"
	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
)

// launcher is one service's.
type launcher struct {
	opt       Options
	log       *slog.Logger
	root      string
	isDefault bool // the name
	reaper    *reaper
	terminal  *terminal

	mu       sync.Mutex
	command  []string // of the generation that serves
	dir      string
	env      []string
	set      *settings
	current  *generation
	turned   chan struct{} // closed when current becomes another one
	all      map[*generation]bool
	stopping bool
	result   *happening // how the generation ended that served last

	events  chan happening
	hangups chan struct{} // a SIGHUP that was not heeded yet

	said sync.Map // see once
}

// once says what is degraded, which is the same for each generation.
func (l *launcher) once(log *slog.Logger, level slog.Level, text string) {
	if _, again := l.said.LoadOrStore(text, true); !again {
		log.Log(context.Background(), level, text)
	}
}

// happening is what a generation tells the launcher.
type happening struct {
	kind happeningKind
	gen  *generation
	err  error
	// tried, with crashed, is the generation that was to start it again and failed; nil at first.
	tried *generation
}

type happeningKind int

const (
	switchedTo happeningKind = iota // gen serves
	crashed                         // its program ended by itself while it served
	tookBack                        // it serves again, since its successor died
	ended                           // it is over
)

// Run starts the command as a generation, serves, and returns when the last of its generations
// has ended: nil after a clean end, an [ExitError] else. ctx's end stops it. It changes
// process-wide things (signals, children, the terminal) and is called once.
func Run(ctx context.Context, o Options) error {
	l, err := newLauncher(o)
	if err != nil {
		return &ExitError{ExitOwnFailure, err}
	}
	defer l.close()
	defer onOneProcessor()()
	return l.run(ctx)
}

func newLauncher(o Options) (*launcher, error) {
	if err := o.defaults(); err != nil {
		return nil, err
	}
	l := &launcher{opt: o, command: o.Command, dir: o.Dir, env: o.Env, all: map[*generation]bool{},
		events: make(chan happening, 16), hangups: make(chan struct{}, 1), turned: make(chan struct{})}
	if l.opt.Name == "" {
		l.opt.Name, l.isDefault = state.DefaultName(o.Command[0]), true
	}
	l.log = o.Log.With("service", l.opt.Name)
	if l.dir == "" {
		l.dir = process.WorkingDirectory()
	} else if abs, err := filepath.Abs(l.dir); err == nil {
		l.dir = abs
	}
	if l.env == nil {
		l.env = os.Environ()
	}
	var err error
	if l.set, err = newSettings(o.Settings); err != nil {
		return nil, err
	}
	if l.root, err = state.Root(o.StateDir, os.Getenv); err != nil {
		return nil, err
	}
	l.terminal = findTerminal()
	if l.reaper, err = newReaper(l.log, l.terminal.follow); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *launcher) close() {
	l.terminal.restore()
	l.reaper.close()
}

// run is the launcher's story.
func (l *launcher) run(ctx context.Context) error {
	sig := l.signals()
	defer sig.stop()
	first := l.newGeneration(request{command: l.command, dir: l.dir, env: l.env, set: l.set})
	starting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	began := make(chan error, 1)
	go func() { began <- first.start(starting) }()
	var stopped os.Signal
	reload := false
	for {
		select {
		case err := <-began:
			switch {
			case err == nil && stopped != nil: // it met the switch
				l.stop(stopped, 0)
				return l.serve(ctx, sig)
			case err == nil:
				l.setCurrent(first) // the event comes too
				if reload {
					l.hangups <- struct{}{}
				}
				return l.serve(ctx, sig)
			case stopped != nil, l.isStopping():
				l.log.Info("stopped while starting", "status", first.program.words())
				return first.endOfProgram()
			}
			return l.neverServed(ctx, sig, first, err)
		case s := <-sig.stops:
			stopped = s
			l.log.Info("stopping", "signal", fmt.Sprint(s))
			cancel(fmt.Errorf("stopped by %s while starting", s))
		case s := <-sig.pass:
			first.signal(s)
		case <-sig.reloads:
			// Who saw the generation serve may be faster than this loop; and what the program
			// read at its start may be out of date.
			l.log.Info("the first generation starts, the reload comes after that")
			reload = true
		}
	}
}

// neverServed ends a launcher whose first generation failed. Under a supervised generation it
// was a request in disguise.
func (l *launcher) neverServed(ctx context.Context, sig *signals, g *generation, err error) error {
	if errors.Is(err, owner.ErrSupervised) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		go func() {
			select {
			case <-sig.stops:
				cancel(errUnwatched)
			case <-ctx.Done():
			}
		}()
		return l.asReload(ctx)
	}
	code := ExitOwnFailure
	var refusal *refusalError
	if errors.As(err, &refusal) {
		// The program's own code would hide whose failure it is.
	} else if c, ok := startCode(err); ok {
		code = c
	} else if c, ok := g.exitCode(); ok && c != 0 {
		code = c // 125 too: it may be a launcher itself
	} else if errors.Is(err, errNeverReady) {
		code = 1
	}
	return &ExitError{code, err}
}

// errUnwatched is how a start that became a reload ends when it is told to stop.
var errUnwatched = errors.New("no longer watched, the handover goes on")

// serve goes on until the last generation has ended.
func (l *launcher) serve(ctx context.Context, sig *signals) error {
	r := newRestarts(l)
	defer r.stop()
	go l.heedHangups()
	defer close(l.hangups)
	rest := time.NewTimer(untilRest)
	defer rest.Stop()
	done := ctx.Done()
	var result error
	for {
		select {
		case h := <-l.events:
			switch h.kind {
			case switchedTo, tookBack:
				l.setCurrent(h.gen)
				sig.passOn(h.gen.req.set.PassSignals)
				r.calm(h.gen)
			case crashed:
				if err := r.crashed(h.gen, h.tried); err != nil {
					result = err
				}
			case ended:
				if last, err := l.ended(h); last {
					return errors.Join(result, err)
				}
				rest.Reset(untilRest)
			}
		case <-rest.C:
			becomeSmall(l.log)
		case <-r.due:
			r.again(ctx)
		case <-r.held:
			r.letGo()
		case s := <-sig.stops:
			if l.stop(s, 0) {
				continue
			}
			l.kill(s)
		case <-done:
			done = nil
			l.stop(syscall.SIGTERM, 0)
		case <-sig.reloads:
			select {
			case l.hangups <- struct{}{}:
			default: // the one that waits will see what this one means
			}
		case s := <-sig.pass:
			if g := l.serving(); g != nil {
				g.signal(s)
				g.sockets.expect()
			}
		}
	}
}

// untilRest is how long after a handover the launcher waits before it makes itself small, so that
// reloads one after the other pay for it once.
const untilRest = 2 * time.Second

func (l *launcher) serving() *generation {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current
}

func (l *launcher) generations() []*generation {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.all))
}

func (l *launcher) setCurrent(g *generation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current = g
	close(l.turned)
	l.turned = make(chan struct{})
	l.command, l.dir, l.env, l.set = g.req.command, g.req.dir, g.req.env, g.req.set
}

// ended forgets a generation and reports whether it was the last, and with what the launcher
// ends then.
func (l *launcher) ended(h happening) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.all, h.gen)
	if l.current == h.gen {
		l.current, l.result = nil, &h
	}
	if len(l.all) > 0 {
		return false, nil
	}
	if l.result != nil { // one that still drained, or started, may be over later
		h = *l.result
	}
	if h.gen.handedOver.Load() || errors.Is(h.err, errSuperseded) {
		l.log.Info("a newer launcher has taken over, this one ends")
		return true, nil
	}
	if errors.Is(h.err, errStopping) {
		return true, nil // a start that the stop cut short
	}
	return true, h.err
}

// stop begins a plain stop; false where it has begun.
func (l *launcher) stop(s os.Signal, timeout time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopping {
		return false
	}
	l.stopping = true
	l.log.Info("stopping", "signal", fmt.Sprint(s))
	for g := range l.all {
		g.stop(timeout)
		if g.abort != nil {
			g.abort(errStopping) // of no effect once it serves
		}
	}
	return true
}

// kill cuts short what a stop or drain still waits for.
func (l *launcher) kill(s os.Signal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.log.Warn("a second signal, cutting what is left", "signal", fmt.Sprint(s))
	for g := range l.all {
		g.cut()
	}
}

func (l *launcher) isStopping() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stopping
}
