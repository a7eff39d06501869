package launcher

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"overlap/lifecycle/process"
	"overlap/reuse/intercept"
)

// program is a process tree of a generation's. A nil program is one that was never started.
type program struct {
	cmd *exec.Cmd
	tap *intercept.Tap
	env []string

	mu     sync.Mutex
	id     process.Identity // of the main process
	ended  chan struct{}
	status syscall.WaitStatus
	known  bool            // the status
	reaped bool            // the first process: its number may be somebody else's
	daemon *process.Handle // of the main process, where that is another than the first

	background atomic.Bool // its first process has ended well by itself
	kin        func(pid int) kinship
	orphans    func(least kinship) []int // what has lost its parents
}

// startProgram starts the generation's command.
func startProgram(g *generation) (*program, error) {
	env, err := g.environment()
	if err != nil {
		return nil, err
	}
	path, err := lookUp(g.req.command[0], g.req.dir, env)
	if err != nil {
		return nil, &startError{g.req.command[0], err}
	}
	p := &program{env: env, ended: make(chan struct{}), kin: g.kin,
		orphans: func(least kinship) []int { return g.l.reaper.orphans(g.kin, least) }}
	mode := intercept.Auto
	if g.req.set.Reuse == ReuseOff {
		mode = intercept.Off
	}
	err = p.exec(g, path, mode, false)
	if errors.Is(err, intercept.ErrNoAccess) && os.Getpid() != 1 {
		// Without access the launcher must make the program's sockets, and then its death
		// must be the program's: every later connection of the program would fail.
		g.log.Debug("the program's sockets can't be reached", "error", err)
		if err = p.exec(g, path, intercept.Make, true); err == nil {
			g.l.once(g.log, slog.LevelWarn, "the program's sockets are made by the launcher, and it ends with it: there is no ptrace access to it (CAP_SYS_PTRACE lifts it)")
		}
	}
	if err != nil {
		var e *exec.Error
		if errors.As(err, &e) {
			return nil, &startError{g.req.command[0], err}
		}
		if errors.Is(err, intercept.ErrNoAccess) || errors.Is(err, intercept.ErrNoFilter) {
			err = fmt.Errorf("%w; %w", err, ErrNotShared)
		}
		return nil, fmt.Errorf("start %s: %w", g.req.command[0], err)
	}
	if p.id, err = process.Of(p.cmd.Process.Pid); err != nil {
		// It ended at once; its status tells more.
		p.id = process.Identity{PID: p.cmd.Process.Pid}
	}
	if p.tap.NoNewPrivs() {
		g.l.once(g.log, slog.LevelInfo, "setuid and file capabilities are off in the program (no_new_privs); CAP_SYS_ADMIN or --reuse off lifts it")
	}
	if p.tap.Mode() == intercept.Make && os.Getpid() == 1 {
		g.l.once(g.log, slog.LevelInfo, "the program's sockets are made by the launcher: there is no ptrace access to it (CAP_SYS_PTRACE lifts it)")
	}
	if g.l.serving() == nil {
		g.l.terminal.give(p.pid())
	}
	go p.wait(g)
	return p, nil
}

// exec starts the process.
func (p *program) exec(g *generation, path string, mode intercept.Mode, dieTogether bool) error {
	p.cmd = &exec.Cmd{Path: path, Args: g.req.command, Dir: g.req.dir, Env: p.env,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true}}
	return g.l.reaper.guard(func() (int, error) {
		tap, err := intercept.Start(p.cmd, intercept.Options{Mode: mode, Bind: g.sockets.bind, Listen: g.sockets.listen, Missed: g.sockets.miss, Made: g.sockets.made,
			ParentDeath: dieTogether, Logger: g.log})
		if err != nil {
			return 0, err
		}
		p.tap = tap
		return p.cmd.Process.Pid, nil
	})
}

// wait follows the main process to its end. One that ends well and leaves a process behind has
// gone into the background: that one is the program then.
func (p *program) wait(g *generation) {
	p.reap()
	g.l.reaper.forget(p.cmd.Process.Pid)
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	// More than once: daemon(7) advises to fork twice, and the first child may be seen before it ends.
	for ok && status.Exited() && status.ExitStatus() == 0 && !g.stopped.Load() {
		p.background.Store(true)
		id, end := g.l.reaper.daemon(p.tap, g.kin)
		if end == nil {
			break
		}
		g.log.Info("the program went into the background", "pid", id.PID)
		p.becomes(id)
		g.owner.Record(&id)
		if g.stopped.Load() { // the stop signal went to the process that is over
			p.signal(g.req.set.StopSignal)
		}
		status = <-end
	}
	p.mu.Lock()
	p.status, p.known = status, ok
	if p.daemon != nil {
		p.daemon.Close()
	}
	p.mu.Unlock()
	close(p.ended)
}

// reap waits for the first process. The kernel gives its number, and that of its group, to nobody else until then.
func (p *program) reap() {
	if err := intercept.AwaitEnd(p.cmd.Process.Pid); err != nil {
		p.cmd.Wait()
	}
	p.mu.Lock()
	p.reaped = true
	p.mu.Unlock()
	p.cmd.Wait()
}

// becomes has another process be the main one.
func (p *program) becomes(id process.Identity) {
	h, err := process.Open(id)
	if err != nil {
		h = nil // it has ended again
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.daemon != nil {
		p.daemon.Close()
	}
	p.id, p.daemon = id, h
}

// startError is a program that could not be executed.
type startError struct {
	name string
	err  error
}

func (e *startError) Error() string { return fmt.Sprintf("start %s: %v", e.name, e.err) }
func (e *startError) Unwrap() error { return e.err }

// startCode is the exit code for a program that could not be executed.
func startCode(err error) (int, bool) {
	var e *startError
	switch {
	case !errors.As(err, &e):
		return 0, false
	case errors.Is(e.err, os.ErrNotExist), errors.Is(e.err, exec.ErrNotFound):
		return ExitNotFound, true
	}
	return ExitNotExecutable, true
}

// lookUp finds the program anew for each generation, relative to its directory, by the PATH of its
// own environment: that of who asked for it.
func lookUp(name, dir string, env []string) (string, error) {
	if strings.ContainsRune(name, filepath.Separator) {
		return executable(name, dir)
	}
	for _, in := range filepath.SplitList(variable(env, "PATH")) {
		if path, err := executable(filepath.Join(in, name), dir); err == nil {
			return path, nil
		}
	}
	return "", &exec.Error{Name: name, Err: exec.ErrNotFound}
}

// variable is the last one of a name.
func variable(env []string, name string) string {
	for _, v := range slices.Backward(env) {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	return ""
}

// executable is the path of a file that can be executed.
func executable(name, dir string) (string, error) {
	if !filepath.IsAbs(name) {
		name = filepath.Join(dir, name)
	}
	info, err := os.Stat(name)
	if err != nil {
		return "", err
	}
	if info.IsDir() || info.Mode()&0o111 == 0 {
		return "", &os.PathError{Op: "exec", Path: name, Err: os.ErrPermission}
	}
	return name, nil
}

func (p *program) identity() *process.Identity {
	p.mu.Lock()
	defer p.mu.Unlock()
	id := p.id
	return &id
}

func (p *program) pid() int {
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.id.PID
}

// tree are the pids of the program's processes.
func (p *program) tree() []int {
	if p == nil {
		return nil
	}
	pids, err := process.Tree(p.pid())
	if err != nil {
		return []int{p.pid()}
	}
	return pids
}

// gone is closed when the program has ended.
func (p *program) gone() <-chan struct{} {
	if p == nil {
		return nil
	}
	return p.ended
}

// alive returns nil while the program runs.
func (p *program) alive() error {
	select {
	case <-p.ended:
		return fmt.Errorf("the program ended with %s", p.describe())
	default:
		return nil
	}
}

func (p *program) describe() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !p.known:
		return "an unknown status"
	case p.status.Signaled():
		return "signal " + p.status.Signal().String()
	}
	return fmt.Sprintf("exit status %d", p.status.ExitStatus())
}

// String is the program's state in words.
func (p *program) words() string {
	if p == nil {
		return "not started"
	}
	select {
	case <-p.ended:
		return p.describe()
	default:
		return "running"
	}
}

// code is the program's exit code; false while it runs.
func (p *program) code() (int, bool) {
	if p == nil {
		return 0, false
	}
	select {
	case <-p.ended:
	default:
		return 0, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status.Signaled() {
		return exitSignalBase + int(p.status.Signal()), true
	}
	return p.status.ExitStatus(), true
}

func (p *program) signal(s syscall.Signal) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !p.reaped:
		syscall.Kill(p.cmd.Process.Pid, s)
	case p.daemon != nil:
		p.daemon.Signal(s)
	}
}

// kill ends what is left of the program, and waits a moment for it.
func (p *program) kill() {
	if p == nil {
		return
	}
	known := process.Identities(p.left) // before their parents end
	p.mu.Lock()
	if !p.reaped {
		syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	}
	p.mu.Unlock()
	process.KillAll(os.Geteuid(), known, p.left)
	select {
	case <-p.ended:
	case <-time.After(process.KillTime):
	}
}

// left are the processes of the main one, and those that have lost their parents: what went into the background, what
// has a socket of the program's, and what is in its process group.
func (p *program) left() (all []int) {
	if id := p.identity(); id.Alive() {
		all = p.tree()
	}
	least := holder
	if p.background.Load() {
		least = relative
	}
	return append(append(all, p.orphans(least)...), p.group()...)
}

// group are the processes of the program's group below this one. Once the first process was waited for the number may
// be another group's: one of them must be the generation's, or hide whose it is while no process has the number.
func (p *program) group() []int {
	number := p.cmd.Process.Pid
	tree, err := process.Tree(os.Getpid())
	if err != nil {
		return nil
	}
	members := inGroup(tree[1:], number)
	p.mu.Lock()
	reaped := p.reaped
	p.mu.Unlock()
	least := relative
	if syscall.Kill(number, 0) == syscall.ESRCH {
		least = unknown
	}
	if reaped && !slices.ContainsFunc(members, func(pid int) bool { return p.kin(pid) >= least }) {
		return nil
	}
	return members
}

func (p *program) close() {
	if p != nil {
		p.tap.Close()
	}
}
