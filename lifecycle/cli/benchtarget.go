package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"overlap/lifecycle/bench"
	"overlap/lifecycle/control"
	"overlap/lifecycle/state"
)

const (
	benchName = "bench"
	// benchStart is how long a server of bench's own may take to serve.
	benchStart = 60 * time.Second
	// benchStop is how long it gets to end before it is killed.
	benchStop = 10 * time.Second
	// benchTail is how long the last drain is waited for.
	benchTail = 10 * time.Second
)

// benchTarget is the service under load.
type benchTarget struct {
	p          *program
	root, name string
	address    string
	// Of a server of bench's own:
	temporary string
	group     int           // the first process, which leads a process group; 0 before its start
	exited    chan struct{} // closed when that process has ended
	said      *tail
	watcher   *benchWatcher
}

// findTarget is a service that runs already.
func (r *benchRun) findTarget(ctx context.Context) (*benchTarget, error) {
	s, err := r.p.service(ctx, "bench --name", r.name)
	if err != nil {
		return nil, err
	}
	defer s.close()
	g, err := s.serving()
	if err != nil {
		return nil, err
	}
	t := &benchTarget{p: r.p, root: s.root, name: s.name}
	t.address, err = addressFor(r.load.Network, g.Listeners)
	return t, err
}

// addressFor picks the first address that the load can go to.
func addressFor(network string, listeners []string) (string, error) {
	for _, l := range listeners {
		if network == "udp" {
			if addr, ok := strings.CutPrefix(l, "udp:"); ok {
				return addr, nil
			}
			continue
		}
		if _, _, err := net.SplitHostPort(l); err == nil && !strings.HasPrefix(l, "udp") && !strings.HasPrefix(l, "unix:") {
			return l, nil
		}
	}
	return "", fmt.Errorf("the service has no address for this load, only: %s", strings.Join(listeners, ", "))
}

// startTarget starts the built-in server, or the command under a launcher, in a state directory
// of its own.
func (r *benchRun) startTarget(ctx context.Context) (*benchTarget, error) {
	temporary, err := state.MkdirTemp(benchPrefix)
	if err != nil {
		return nil, err
	}
	t := newBenchTarget(r.p, temporary)
	if t.watcher, err = watchBench(t); err != nil {
		return nil, errors.Join(err, t.close())
	}
	if err := t.start(ctx, r); err != nil {
		return nil, errors.Join(err, t.close())
	}
	t.watcher.tell(t.group)
	g, err := t.await(ctx)
	if err == nil {
		t.address, err = addressFor(r.load.Network, g.Listeners)
	}
	if err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

func (t *benchTarget) start(ctx context.Context, r *benchRun) error {
	self, err := ownCommand()
	if err != nil {
		return err
	}
	args := []string{self, "--state-dir", t.root, "--log-level", "warn"}
	if r.builtin() {
		serve, err := t.builtin(ctx, r)
		if err != nil {
			return err
		}
		args = append(args, serve...)
	} else {
		args = append(args, "run", "--name", t.name)
		for _, addr := range r.listen {
			args = append(args, "--listen", addr)
		}
		args = append(append(args, "--"), r.command...)
	}
	first := exec.Command(args[0], args[1:]...)
	first.Env = environ()
	first.Stdout, first.Stderr = t.said, t.said
	// A group of their own: Ctrl-C is for the bench, which ends them in order.
	first.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// What the processes that it starts hold open must not keep Wait waiting.
	first.WaitDelay = time.Millisecond
	if err := first.Start(); err != nil {
		return fmt.Errorf("start the server: %w", err)
	}
	t.group = first.Process.Pid
	go func() { first.Wait(); close(t.exited) }()
	return nil
}

// builtin is the command line of the built-in server, behind that of overlap.
func (t *benchTarget) builtin(ctx context.Context, r *benchRun) ([]string, error) {
	site := filepath.Join(t.temporary, "site")
	if err := os.Mkdir(site, 0o755); err != nil {
		return nil, err
	}
	addr, err := freeAddress(ctx, r.load.Network)
	if err != nil {
		return nil, err
	}
	args := []string{"serve", "--name", t.name, "--listen", addr, "--dir", site}
	if r.load.TLS != nil {
		cert, key, err := writeCertificate(t.temporary)
		if err != nil {
			return nil, err
		}
		args = append(args, "--tls-cert", cert, "--tls-key", key)
	}
	return args, nil
}

// ownCommand is how this program can be started again, also by a generation that replaces
// itself.
func ownCommand() (string, error) {
	name := os.Args[0]
	if !strings.ContainsRune(name, filepath.Separator) {
		if found, err := exec.LookPath(name); err == nil {
			name = found
		}
	}
	if abs, err := filepath.Abs(name); err == nil {
		if _, err := os.Stat(abs); err == nil {
			return abs, nil
		}
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find overlap's own program: %w", err)
	}
	return self, nil
}

// freeAddress is an address that nobody listens on at the moment, as serve takes it.
func freeAddress(ctx context.Context, network string) (string, error) {
	const anyPort = "127.0.0.1:0"
	var lc net.ListenConfig
	if network == "udp" {
		pc, err := lc.ListenPacket(ctx, network, anyPort)
		if err != nil {
			return "", fmt.Errorf("find a free port: %w", err)
		}
		defer pc.Close()
		return "udp:" + pc.LocalAddr().String(), nil
	}
	ln, err := lc.Listen(ctx, "tcp", anyPort)
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// await waits until the first generation serves.
func (t *benchTarget) await(ctx context.Context) (generation, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, benchStart, fmt.Errorf("the server did not serve within %s", benchStart))
	defer cancel()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for {
		s, err := t.p.look(ctx, t.root, t.name)
		if err == nil {
			g, err := s.serving()
			s.close()
			if err == nil && len(g.Listeners) > 0 {
				return g, nil
			}
		}
		select {
		case <-look.C:
		case <-t.exited:
			return generation{}, fmt.Errorf("the server ended before it served: %s", t.said)
		case <-ctx.Done():
			return generation{}, context.Cause(ctx)
		}
	}
}

// close ends a server of bench's own, and whatever it started, and removes its files.
func (t *benchTarget) close() error {
	if t.temporary == "" {
		return nil
	}
	if t.watcher != nil {
		defer t.watcher.end()
	}
	if t.group != 0 {
		ctx, cancel := context.WithTimeout(context.Background(), benchStop)
		defer cancel()
		if s, err := t.p.look(ctx, t.root, t.name); err == nil {
			if s.serves() {
				s.stop(ctx, benchStop/2, nil)
			}
			s.close()
		}
		t.terminate(ctx)
		if t.lives() {
			syscall.Kill(-t.group, syscall.SIGKILL)
		}
		<-t.exited
	}
	if err := os.RemoveAll(t.temporary); err != nil {
		return fmt.Errorf("remove the bench's files: %w", err)
	}
	return nil
}

// terminate ends a first process that is still there, as one that starts is, with nobody to be
// asked. A launcher that were killed instead would leave its program.
func (t *benchTarget) terminate(ctx context.Context) {
	select {
	case <-t.exited:
		return
	default:
		syscall.Kill(t.group, syscall.SIGTERM)
	}
	select {
	case <-t.exited:
	case <-ctx.Done():
	}
}

// lives reports whether anything of the server's process group is left. Only then is the group's
// number certainly still its own.
func (t *benchTarget) lives() bool {
	select {
	case <-t.exited:
	default:
		return true
	}
	s, err := t.p.look(context.Background(), t.root, t.name)
	if err != nil {
		return false
	}
	defer s.close()
	return len(s.generations) > 0
}

// tail keeps the end of what a server said.
type tail struct {
	mu  sync.Mutex
	end []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end = append(t.end, b...)
	if n := len(t.end) - 2048; n > 0 {
		t.end = append(t.end[:0], t.end[n:]...)
	}
	return len(b), nil
}

// String is the last lines in one.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.ReplaceAll(bytes.TrimSpace(t.end), []byte("\n"), []byte("; ")))
}

// reloads makes the handovers of a run.
type reloads struct {
	target *benchTarget
	marks  *bench.Marks
	every  time.Duration
	limit  int
	until  time.Time // the run's end, zero where only the limit ends it
	stop   func()    // ends the run

	mu            sync.Mutex
	begun, failed int
	reason        string // of the first that failed
	generation    int
}

// serving is the newest generation that was seen to serve, 0 if none was.
func (r *reloads) serving() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.generation
}

// run reloads until the run ends, and waits for the last drain.
func (r *reloads) run(ctx context.Context) {
	if r.every <= 0 {
		return
	}
	following, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var all sync.WaitGroup
	defer func() {
		late := time.AfterFunc(benchTail, cancel)
		all.Wait()
		late.Stop()
		cancel()
	}()
	tick := time.NewTicker(r.every)
	defer tick.Stop()
	for r.limit == 0 || r.begun < r.limit {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if !r.until.IsZero() && time.Until(r.until) < min(r.every, DefaultReloadEvery) {
			<-ctx.Done() // too late for one more
			return
		}
		r.begun++
		switched := make(chan struct{})
		all.Go(func() { r.one(following, switched) })
		<-switched
	}
	// The last drain belongs to the run.
	drained := make(chan struct{})
	go func() { all.Wait(); close(drained) }()
	select {
	case <-drained:
	case <-time.After(benchTail):
	case <-ctx.Done():
	}
	r.stop()
}

// one is one handover; switched is closed when it is over for the newcomer.
func (r *reloads) one(ctx context.Context, switched chan struct{}) {
	var once sync.Once
	over := func() { once.Do(func() { close(switched) }) }
	defer over()
	s, err := r.target.p.look(ctx, r.target.root, r.target.name)
	if err != nil {
		r.fail(err.Error())
		return
	}
	defer s.close()
	g, err := s.serving()
	if err != nil {
		r.fail(err.Error())
		return
	}
	done := false // the switch was seen; what comes after it is the drain's
	out, err := s.client(g).Reload(ctx, control.ReloadRequest{Wait: control.WaitDrained}, func(e control.Event) {
		switch {
		case e.Kind == control.KindSwitched && !e.Final:
			r.marks.Add(bench.Mark{Kind: bench.Switch, Generation: e.Generation, At: e.Time})
			r.mu.Lock()
			r.generation = e.Generation
			r.mu.Unlock()
			done = true
			over()
		case e.Kind == control.KindDrained && !e.Final:
			r.marks.Add(bench.Mark{Kind: bench.Drained, Generation: g.Generation.Generation, At: e.Time})
		}
	})
	switch {
	case err == nil && out.Outcome == control.OutcomeSwitched:
	case err != nil && done:
		// The old generation went before it could say so.
	case err != nil:
		r.fail(err.Error())
	default:
		r.fail(out.Reason)
	}
}

func (r *reloads) fail(reason string) {
	r.marks.Add(bench.Mark{Kind: bench.NotSwitched})
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed++; r.reason == "" {
		r.reason = reason
	}
}
