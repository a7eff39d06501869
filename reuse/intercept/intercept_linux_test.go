package intercept

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// record is a Bind callback that keeps what it was called with.
type record struct {
	sync.Mutex
	binds []Bind
}

func (r *record) bind(b Bind) error {
	err := share(b)
	b.Socket, b.tap = nil, nil
	r.Lock()
	defer r.Unlock()
	r.binds = append(r.binds, b)
	return err
}

func (r *record) all() []Bind {
	r.Lock()
	defer r.Unlock()
	return append([]Bind(nil), r.binds...)
}

func TestFetchSharesPortOfStaticServer(t *testing.T) {
	address := reserved(t, "tcp", "127.0.0.1")
	var r record
	for range 2 {
		p := start(t, Options{Mode: Fetch, Bind: r.bind}, nil)
		p.expect(t, "ok", "listen", "tcp", address)
		last := r.all()[len(r.all())-1]
		want := Bind{PID: p.cmd.Process.Pid, Network: "tcp", Addr: netip.MustParseAddrPort(address), Family: unix.AF_INET, FD: last.FD, Inode: last.Inode, UID: os.Getuid()}
		if last != want || last.Inode == 0 || last.FD <= 2 {
			t.Errorf("callback got %+v, want %+v", last, want)
		}
	}
	if binds := r.all(); len(binds) != 2 || binds[0].Inode == binds[1].Inode {
		t.Errorf("two listeners were %+v", binds)
	}
}

// The negative control of all of these tests: without the callback the port is
// taken.
func TestUnsharedPortIsTaken(t *testing.T) {
	address := reserved(t, "tcp", "127.0.0.1")
	start(t, Options{Mode: Fetch}, nil).expect(t, "EADDRINUSE", "listen", "tcp", address)
	start(t, Options{Mode: Off}, nil).expect(t, "EADDRINUSE", "listen", "tcp", address)
}

func TestFetchThreadsAndChildren(t *testing.T) {
	var r record
	p := start(t, Options{Mode: Fetch, Bind: r.bind}, nil)
	for _, verb := range []string{"bind", "thread", "child"} {
		p.expect(t, "ok", verb, "tcp", reserved(t, "tcp", "127.0.0.1"))
	}
	binds := r.all()
	if len(binds) != 3 {
		t.Fatalf("callback got %+v, want three binds", binds)
	}
	if pid := p.cmd.Process.Pid; binds[0].PID != pid || binds[1].PID != pid || binds[2].PID == pid {
		t.Errorf("processes of the binds are wrong: %+v, the program is %d", binds, pid)
	}
}

func TestFetchIPv6AndUDP(t *testing.T) {
	var r record
	p := start(t, Options{Mode: Fetch, Bind: r.bind}, nil)
	six := reserved(t, "tcp", "::1")
	p.expect(t, "ok", "listen", "tcp6", six) // net sets IPV6_V6ONLY for it
	udp := reserved(t, "udp", "127.0.0.1")
	p.expect(t, "ok", "bind", "udp", udp)
	four := reserved(t, "tcp", "127.0.0.1")
	mapped := "[::ffff:127.0.0.1]:" + four[strings.LastIndex(four, ":")+1:]
	p.expect(t, "ok", "bind", "tcp6", mapped)

	pid, uid, binds := p.cmd.Process.Pid, os.Getuid(), r.all()
	want := []Bind{
		{PID: pid, Network: "tcp", Addr: netip.MustParseAddrPort(six), Family: unix.AF_INET6, V6Only: true, UID: uid},
		{PID: pid, Network: "udp", Addr: netip.MustParseAddrPort(udp), Family: unix.AF_INET, UID: uid},
		{PID: pid, Network: "tcp", Addr: netip.MustParseAddrPort(mapped), Family: unix.AF_INET6, UID: uid},
	}
	for i := range binds {
		binds[i].FD, binds[i].Inode = 0, 0
	}
	if fmt.Sprint(binds) != fmt.Sprint(want) {
		t.Errorf("callback got\n%+v, want\n%+v", binds, want)
	}
}

func TestLeftAlone(t *testing.T) {
	var r record
	p := start(t, Options{Mode: Fetch, Bind: r.bind}, nil)
	p.expect(t, "ok", "listen", "tcp", "127.0.0.1:0")
	p.expect(t, "ok", "bind", "udp", "127.0.0.1:0")
	p.expect(t, "ok", "unix")
	p.expect(t, "EFAULT", "short")
	if binds := r.all(); len(binds) != 0 {
		t.Errorf("callback got %+v, want nothing", binds)
	}
}

func TestMPTCPIsRefused(t *testing.T) {
	for _, mode := range []Mode{Fetch, Make} {
		start(t, Options{Mode: mode}, nil).expect(t, "EPROTONOSUPPORT", "mptcp")
	}
	// The control: whatever the kernel says, it is not that.
	if got := start(t, Options{Mode: Off}, nil).do("mptcp"); got == "EPROTONOSUPPORT" {
		missing(t, "no MPTCP in this kernel to refuse: sysctl net.mptcp.enabled=1")
	}
}

func TestCallbackErrors(t *testing.T) {
	address := reserved(t, "tcp", "127.0.0.1")
	var log bytes.Buffer
	first := true
	p := start(t, Options{
		Mode: Fetch,
		Bind: func(b Bind) error {
			if first {
				first = false
				return errors.Join(share(b), errors.New("something else"))
			}
			return fmt.Errorf("a stranger has it: %w", unix.EACCES)
		},
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	}, nil)
	p.expect(t, "ok", "bind", "tcp", address)
	p.expect(t, "EACCES", "bind", "tcp", address)
	if err := p.end(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "something else") || strings.Contains(log.String(), "stranger") {
		t.Errorf("the log says %q, want the first error only", log.String())
	}
}

// What the documentation says of a launcher that goes away.
func TestAfterCloseBindFails(t *testing.T) {
	p := start(t, Options{Mode: Fetch, Bind: share}, nil)
	p.expect(t, "ok", "bind", "tcp", reserved(t, "tcp", "127.0.0.1"))
	p.tap.Close()
	p.tap.Close()
	<-p.tap.Done()
	p.expect(t, "ENOSYS", "bind", "tcp", "127.0.0.1:0")
	p.expect(t, "nonblock=false cloexec=true reuseport=0", "socket", strconv.Itoa(unix.SOCK_STREAM|unix.SOCK_CLOEXEC))

	p = start(t, Options{Mode: Make}, nil)
	p.tap.Close()
	p.expect(t, "ENOSYS", "socket", strconv.Itoa(unix.SOCK_STREAM))
}

func TestDoneWhenNoProcessIsLeft(t *testing.T) {
	p := start(t, Options{Mode: Fetch}, nil)
	select {
	case <-p.tap.Done():
		t.Fatal("done while the program runs")
	default:
	}
	p.in.Close()
	p.cmd.Wait()
	select {
	case <-p.tap.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("not done 10 s after the end of the program")
	}
	p.ended = true
	if err := p.tap.Close(); err != nil {
		t.Error(err)
	}

	off := start(t, Options{Mode: Off}, nil)
	off.end()
	<-off.tap.Done()
}

// A program that is killed while its bind waits for the callback is no error.
func TestKilledDuringBind(t *testing.T) {
	var p *running
	ready, called := make(chan struct{}), make(chan struct{})
	p = start(t, Options{Mode: Fetch, Bind: func(Bind) error {
		<-ready
		p.cmd.Process.Kill()
		p.cmd.Process.Wait()
		close(called)
		return nil
	}}, nil)
	close(ready)
	fmt.Fprintln(p.in, "bind tcp", reserved(t, "tcp", "127.0.0.1"))
	<-called
	<-p.tap.Done()
}

func TestExecErrors(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		want error
	}{
		{filepath.Join(t.TempDir(), "absent"), os.ErrNotExist},
		{"no-such-command-as-this", exec.ErrNotFound},
		{plain, os.ErrPermission},
	} {
		for _, mode := range []Mode{Auto, Off} {
			var failure *exec.Error
			tap, err := Start(exec.Command(c.path), Options{Mode: mode})
			if tap != nil || !errors.As(err, &failure) || !errors.Is(err, c.want) {
				t.Errorf("start %s in mode %v: %v, want an *exec.Error that is %v", c.path, mode, err, c.want)
			}
		}
	}
	// A path that exec.Command did not look up.
	cmd := &exec.Cmd{Path: plain}
	_, err := Start(cmd, Options{})
	if !errors.Is(err, os.ErrPermission) || cmd.Path != plain || len(cmd.ExtraFiles) != 0 {
		t.Errorf("start %s: %v", plain, err)
	}
	// What is not the program's own must not look as if it were.
	away := exec.Command("/proc/self/exe")
	away.Dir = filepath.Join(t.TempDir(), "absent")
	var failure *exec.Error
	if _, err := Start(away, Options{}); err == nil || errors.As(err, &failure) || errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), away.Dir) {
		t.Errorf("start in %s: %v", away.Dir, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(exec.CommandContext(ctx, "/proc/self/exe"), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("start too late: %v", err)
	}
	if _, err := Start(&exec.Cmd{}, Options{}); err == nil {
		t.Error("started nothing")
	}
	if _, err := Start(&exec.Cmd{Path: plain, SysProcAttr: &syscall.SysProcAttr{Ptrace: true}}, Options{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("start traced: %v", err)
	}
}

func TestProgramIsAsAsked(t *testing.T) {
	// Descriptors without close-on-exec in the launcher must not get through.
	stray, err := unix.Dup(int(os.Stderr.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(stray)
	extra, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer extra.Close()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}

	for _, mode := range []Mode{Fetch, Make, Off} {
		p := start(t, Options{Mode: mode}, func(cmd *exec.Cmd) {
			cmd.Args = []string{"program", "-a", "b c"}
			cmd.Env = append(cmd.Env, "SOME_VARIABLE=its-value")
			cmd.Dir = dir
			cmd.ExtraFiles = []*os.File{extra}
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		})
		if p.tap.Mode() != mode || p.cmd.Path != "/proc/self/exe" || len(p.cmd.Args) != 3 || len(p.cmd.ExtraFiles) != 1 {
			t.Errorf("in mode %v: mode %v, command %q with %d files", mode, p.tap.Mode(), p.cmd.Args, len(p.cmd.ExtraFiles))
		}
		p.expect(t, "0 1 2 3", "fds")
		p.expect(t, fmt.Sprintf("pid=%d leader=true uid=%d args=%q dir=%s variable=its-value", p.cmd.Process.Pid, os.Getuid(), []string{"-a", "b c"}, dir), "ids")
		nnp := "0"
		if p.tap.NoNewPrivs() {
			nnp = "1"
		}
		p.expect(t, nnp, "status", "NoNewPrivs")
		if err := p.end(); err != nil {
			t.Error(err)
		}
	}
}

func TestIgnoredSignalsStayIgnored(t *testing.T) {
	path, err := exec.LookPath("grep")
	if err != nil {
		missing(t, "no grep: apt-get install grep")
	}
	signal.Ignore(unix.SIGTTOU)
	defer signal.Reset(unix.SIGTTOU)
	cmd := exec.Command(path, "SigIgn", "/proc/self/status")
	var out bytes.Buffer
	cmd.Stdout = &out
	tap, err := Start(cmd, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	mask, err := strconv.ParseUint(strings.TrimSpace(strings.TrimPrefix(out.String(), "SigIgn:")), 16, 64)
	if err != nil || mask&(1<<(unix.SIGTTOU-1)) == 0 || mask&(1<<(unix.SIGTERM-1)) != 0 {
		t.Errorf("%q, %v: want SIGTTOU and not SIGTERM", out.String(), err)
	}
}

func TestNested(t *testing.T) {
	start(t, Options{}, nil).expect(t, "nested=true process=false", "nested")
}

func TestMakeMode(t *testing.T) {
	address := reserved(t, "tcp", "127.0.0.1")
	var r record
	var made []int
	p := start(t, Options{
		Mode: Make,
		Bind: func(b Bind) error {
			if b.Socket != nil {
				return unix.EDOM
			}
			r.Lock()
			defer r.Unlock()
			b.tap, b.lend = nil, nil
			r.binds = append(r.binds, b)
			return nil
		},
		Made: func(socket *os.File, domain int) error {
			made = append(made, domain)
			return shareSocket(socket)
		},
	}, nil)
	p.expect(t, "ok", "listen", "tcp", address)
	p.expect(t, "EADDRINUSE", "bind", "udp", reserved(t, "udp", "127.0.0.1")) // the launcher did not want it
	binds := r.all()
	if len(binds) != 2 {
		t.Fatalf("callback got %+v, want two binds", binds)
	}
	want := Bind{PID: p.cmd.Process.Pid, Network: "tcp", Addr: netip.MustParseAddrPort(address), Family: unix.AF_INET, FD: binds[0].FD, Inode: binds[0].Inode, UID: os.Getuid()}
	if binds[0] != want || binds[0].Inode == 0 || binds[0].FD <= 2 || binds[1].Network != "udp" {
		t.Errorf("callback got %+v, want %+v and an UDP socket", binds, want)
	}
	for _, flags := range []int{0, unix.SOCK_NONBLOCK, unix.SOCK_CLOEXEC, unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC} {
		want := fmt.Sprintf("nonblock=%t cloexec=%t reuseport=1", flags&unix.SOCK_NONBLOCK != 0, flags&unix.SOCK_CLOEXEC != 0)
		p.expect(t, want, "socket", strconv.Itoa(unix.SOCK_STREAM|flags))
	}
	p.expect(t, "EINVAL", "socket", strconv.Itoa(unix.SOCK_STREAM|0x10000))
	p.expect(t, "EMFILE", "exhaust")
	p.end()
	if !slices.Contains(made, unix.AF_INET) || !slices.Contains(made, unix.AF_INET6) {
		t.Errorf("sockets of %v were made", made)
	}
}

// A socket of the launcher's would be in the launcher's network.
func TestMakeModeLeavesOtherNetworksAlone(t *testing.T) {
	made := func(socket *os.File, _ int) error { return shareSocket(socket) }
	p, err := startProgram(Options{Mode: Make, Made: made}, func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
	})
	if err != nil {
		missing(t, "no user namespaces here: "+err.Error())
	}
	defer p.end()
	p.expect(t, "nonblock=false cloexec=false reuseport=0", "socket", strconv.Itoa(unix.SOCK_STREAM))
}

func TestMakeModeErrors(t *testing.T) {
	p := start(t, Options{Mode: Make, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Made: func(_ *os.File, domain int) error {
		if domain == unix.AF_INET6 {
			return os.NewSyscallError("socket", unix.EACCES)
		}
		return errors.New("no matter")
	}}, nil)
	p.expect(t, "EACCES", "socket", strconv.Itoa(unix.SOCK_STREAM))
	p.expect(t, "ok", "bind", "tcp", "127.0.0.1:0")
}

// launcher starts the test binary as a launcher of its own.
func launcher(t *testing.T, role string, attr *syscall.SysProcAttr, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.SysProcAttr = attr
	cmd.Stderr = os.Stderr
	return cmd
}

// needOtherUser skips where programs cannot be started as user 65534: that
// takes root, in a user namespace that has this user.
func needOtherUser(t *testing.T) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{idleName} // which ends at once
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if err := cmd.Run(); errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
		t.Skip("needs root, to start a program as another user:", err)
	}
}

func TestLauncherWithoutPrivileges(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root, so every other test is this one")
	}
	needOtherUser(t)
	out, err := launcher(t, "share", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}).Output()
	if got, want := strings.TrimSpace(string(out)), "uid=65534 mode=fetch listen=ok no_new_privs=1,true"; err != nil || got != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
}

func TestProgramOfAnotherUser(t *testing.T) {
	needOtherUser(t)
	address := reserved(t, "udp", "127.0.0.1")
	var r record
	p := start(t, Options{Bind: r.bind}, func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	})
	// Root's reservation is of another user: this group is not shared.
	p.expect(t, "EADDRINUSE", "bind", "udp", address)
	if binds := r.all(); p.tap.Mode() != Fetch || len(binds) != 1 || binds[0].UID != 65534 {
		t.Errorf("mode %v, binds %+v", p.tap.Mode(), binds)
	}
}

// Where the program's sockets can't be had, as in a container with a program of
// another user, they can be made, and its binds are seen as that user sees them.
func TestWithoutAccess(t *testing.T) {
	needOtherUser(t)
	got, err := withoutPtrace(launcher(t, "no-access", nil))
	if want := "auto: no access=true\nmode=make listen=ok binds=1"; err != nil || got != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
}

// Root without CAP_SYS_PTRACE loses its access to a program that becomes another user. So where the program ends with the
// launcher anyway, its sockets are made from the beginning.
func TestAccessThatMayPass(t *testing.T) {
	needOtherUser(t)
	first := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	for _, c := range []struct {
		what string
		run  func() (string, error)
		want Mode
	}{
		{"PID 1 without the capability", func() (string, error) { return withoutPtrace(launcher(t, "auto", first)) }, Make},
		{"PID 1 with it", func() (string, error) { return output(launcher(t, "auto", first)) }, Fetch},
		{"not PID 1", func() (string, error) { return withoutPtrace(launcher(t, "auto", nil)) }, Fetch},
	} {
		if got, err := c.run(); err != nil || got != c.want.String() {
			t.Errorf("%s: %s, %v, want %v", c.what, got, err, c.want)
		}
	}
}

func output(cmd *exec.Cmd) (string, error) {
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}

// withoutPtrace runs a launcher without CAP_SYS_PTRACE.
func withoutPtrace(cmd *exec.Cmd) (out string, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The bounding set is the thread's: it ends with this goroutine.
		runtime.LockOSThread()
		if err = unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_PTRACE, 0, 0, 0); err == nil {
			out, err = output(cmd)
		}
	}()
	<-done
	return out, err
}

func TestParentDeath(t *testing.T) {
	for _, c := range []struct {
		args []string
		dies bool
	}{{[]string{"parent-death"}, true}, {nil, false}} {
		cmd := launcher(t, "launch-and-wait", nil, c.args...)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		pid, perr := strconv.Atoi(strings.TrimSpace(line))
		if err != nil || perr != nil {
			cmd.Process.Kill()
			cmd.Wait()
			t.Fatalf("%q, %v, %v", line, err, perr)
		}
		program, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(program)
		cmd.Process.Kill()
		cmd.Wait()
		p := []unix.PollFd{{Fd: int32(program), Events: unix.POLLIN}}
		for deadline := time.Now().Add(10 * time.Second); p[0].Revents == 0 && time.Now().Before(deadline); {
			if _, err := unix.Poll(p, 200); err != nil && err != unix.EINTR {
				t.Fatal(err)
			}
			if !c.dies {
				break // the control: a moment is as good as any
			}
		}
		if died := p[0].Revents != 0; died != c.dies {
			t.Errorf("%v: the program died with its launcher: %t", c.args, died)
		}
		unix.PidfdSendSignal(program, unix.SIGKILL, nil, 0)
	}
}

func TestIdleWithoutWakeUps(t *testing.T) {
	cmd := launcher(t, "launch-and-wait", nil)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	// A window without any is what idleness is; a busy machine may need some
	// time to get there.
	const window = 400 * time.Millisecond
	before := contextSwitches(t, cmd.Process.Pid)
	for deadline := time.Now().Add(12 * time.Second); ; {
		time.Sleep(window)
		now := contextSwitches(t, cmd.Process.Pid)
		if now == before {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d context switches of the idle launcher in %v", now-before, window)
		}
		before = now
	}
}

// contextSwitches counts how often the threads of a process were put to sleep.
func contextSwitches(t *testing.T, pid int) (n int) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(files) == 0 {
		t.Fatal("no threads of", pid, err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // ended
		}
		for line := range strings.Lines(string(b)) {
			if value, ok := strings.CutPrefix(line, "voluntary_ctxt_switches:"); ok {
				v, _ := strconv.Atoi(strings.TrimSpace(value))
				n += v
			}
		}
	}
	return n
}

func TestPythonServer(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		missing(t, "no python3: apt-get install python3")
	}
	address := reserved(t, "tcp", "127.0.0.1")
	bound := make(chan Bind, 8)
	cmd := exec.Command(python, "-m", "http.server", "--bind", "127.0.0.1", address[strings.LastIndex(address, ":")+1:])
	cmd.Dir = t.TempDir()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	tap, err := Start(cmd, Options{Bind: func(b Bind) error { bound <- b; return share(b) }, ParentDeath: true})
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	defer cmd.Wait()
	defer syscall.Kill(-cmd.Process.Pid, unix.SIGKILL)
	select {
	case b := <-bound:
		if b.Addr.String() != address {
			t.Errorf("bound %v, want %v", b.Addr, address)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("no bind in 30 s")
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		r, err := client.Get("http://" + address + "/")
		if err == nil {
			r.Body.Close()
			if r.StatusCode != http.StatusOK {
				t.Error(r.Status)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// A child by fork alone, and a thread of a C program.
func TestPythonForkAndThread(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		missing(t, "no python3: apt-get install python3")
	}
	const script = `
import os, socket, sys, threading
def bind(port):
    s = socket.socket()
    s.bind(("127.0.0.1", int(port)))
    s.listen()
if os.fork() == 0:
    bind(sys.argv[1])
    os._exit(0)
if os.wait()[1] != 0: sys.exit(1)
failed = []
def thread():
    try: bind(sys.argv[2])
    except OSError as e: failed.append(e)
t = threading.Thread(target=thread)
t.start()
t.join()
sys.exit(str(failed) if failed else 0)
`
	args := []string{"-c", script}
	for range 2 {
		address := reserved(t, "tcp", "127.0.0.1")
		args = append(args, address[strings.LastIndex(address, ":")+1:])
	}
	var r record
	cmd := exec.Command(python, args...)
	cmd.Stderr = os.Stderr
	tap, err := Start(cmd, Options{Bind: r.bind})
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	binds := r.all()
	if pid := cmd.Process.Pid; len(binds) != 2 || binds[0].PID == pid || binds[1].PID != pid {
		t.Errorf("callback got %+v, want one of a child of %d and one of itself", binds, pid)
	}
}

// The filter by itself: what the kernel does with it is tried above.
func TestFilter(t *testing.T) {
	const arch, other = uint32(unix.AUDIT_ARCH_X86_64), uint32(unix.AUDIT_ARCH_I386)
	const (
		allow  = uint32(unix.SECCOMP_RET_ALLOW)
		notify = uint32(unix.SECCOMP_RET_USER_NOTIF)
		refuse = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.EPROTONOSUPPORT)
	)
	const x32 = 0x40000000
	for _, c := range []struct {
		arch, nr          uint32
		args              [3]uint32
		both, fetch, make uint32 // with bind and make; bind; make
	}{
		{arch, unix.SYS_BIND, [3]uint32{3, 0, 16}, notify, notify, allow},
		{arch, unix.SYS_BIND, [3]uint32{3, 0, 28}, notify, notify, allow},
		{arch, unix.SYS_BIND, [3]uint32{3, 0, 12}, allow, allow, allow},
		{other, unix.SYS_BIND, [3]uint32{3, 0, 16}, allow, allow, allow},
		{arch, unix.SYS_BIND | x32, [3]uint32{3, 0, 16}, allow, allow, allow},
		{arch, unix.SYS_CONNECT, [3]uint32{3, 0, 16}, allow, allow, allow},
		{arch, unix.SYS_SOCKET, [3]uint32{unix.AF_INET, unix.SOCK_STREAM, 0}, notify, allow, notify},
		{arch, unix.SYS_SOCKET, [3]uint32{unix.AF_INET6, unix.SOCK_DGRAM | unix.SOCK_CLOEXEC, unix.IPPROTO_UDP}, allow, allow, allow},
		{arch, unix.SYS_SOCKET, [3]uint32{unix.AF_INET6, unix.SOCK_STREAM | unix.SOCK_NONBLOCK, unix.IPPROTO_TCP}, notify, allow, notify},
		{arch, unix.SYS_SOCKET, [3]uint32{unix.AF_INET, unix.SOCK_RAW, 0}, allow, allow, allow},
		{arch, unix.SYS_SOCKET, [3]uint32{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP}, allow, allow, allow},
		{arch, unix.SYS_SOCKET, [3]uint32{unix.AF_UNIX, unix.SOCK_STREAM, 0}, allow, allow, allow},
		{arch, unix.SYS_SOCKET, [3]uint32{unix.AF_NETLINK, unix.SOCK_DGRAM, 0}, allow, allow, allow},
		{arch, unix.SYS_SOCKET, [3]uint32{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP}, refuse, refuse, refuse},
		{arch, unix.SYS_SOCKET, [3]uint32{unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_MPTCP}, refuse, refuse, refuse},
		{other, unix.SYS_SOCKET, [3]uint32{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP}, allow, allow, allow},
		{arch, unix.SYS_SETSOCKOPT, [3]uint32{3, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF}, notify, notify, allow},
		{arch, unix.SYS_SETSOCKOPT, [3]uint32{3, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_EBPF}, notify, notify, allow},
		{arch, unix.SYS_SETSOCKOPT, [3]uint32{3, unix.SOL_SOCKET, unix.SO_DETACH_REUSEPORT_BPF}, notify, notify, allow},
		{arch, unix.SYS_SETSOCKOPT, [3]uint32{3, unix.SOL_SOCKET, unix.SO_BINDTODEVICE}, notify, allow, allow},
		{arch, unix.SYS_SETSOCKOPT, [3]uint32{3, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX}, notify, allow, allow},
		{arch, unix.SYS_SETSOCKOPT, [3]uint32{3, unix.SOL_SOCKET, unix.IPV6_V6ONLY}, allow, allow, allow}, // SO_ATTACH_FILTER
		{arch, unix.SYS_SETSOCKOPT, [3]uint32{3, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY}, notify, allow, allow},
		{arch, unix.SYS_SETSOCKOPT, [3]uint32{3, unix.IPPROTO_IPV6, unix.SO_ATTACH_REUSEPORT_CBPF}, allow, allow, allow},
		{arch, unix.SYS_SETSOCKOPT, [3]uint32{3, unix.IPPROTO_TCP, unix.SO_BINDTODEVICE}, allow, allow, allow},
		{other, unix.SYS_SETSOCKOPT, [3]uint32{3, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF}, allow, allow, allow},
	} {
		// The machine of package bpf loads in network order, the kernel in the
		// host's; the words are laid out for the former.
		data := make([]byte, 64)
		binary.BigEndian.PutUint32(data[offNumber:], c.nr)
		binary.BigEndian.PutUint32(data[offArch:], c.arch)
		for i, v := range c.args {
			binary.BigEndian.PutUint32(data[offArgs+8*i:], v)
			binary.BigEndian.PutUint32(data[offArgs+8*i+4:], 0xdeadbeef) // the high half does not count
		}
		for _, v := range []struct {
			bind, make bool
			want       uint32
		}{{true, true, c.both}, {true, false, c.fetch}, {false, true, c.make}} {
			vm, err := bpf.NewVM(program(arch, v.bind, v.make))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := vm.Run(data); err != nil || uint32(got) != v.want {
				t.Errorf("call %d%v of %x with bind=%t make=%t: %x, %v, want %x", c.nr, c.args, c.arch, v.bind, v.make, got, err, v.want)
			}
		}
	}
}

func FuzzParseSockaddr(f *testing.F) {
	f.Add([]byte{2, 0, 0, 80, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add(append([]byte{10, 0, 1, 187, 0, 0, 0, 0, 0xfe, 0x80}, make([]byte, 18)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		addr, ok := parseSockaddr(b[:min(len(b), maxSockaddr)])
		if ok && (!addr.IsValid() || addr.Port() == 0 || len(b) < unix.SizeofSockaddrInet4) {
			t.Errorf("%x: %v", b, addr)
		}
	})
}

func TestParseSockaddr(t *testing.T) {
	four := []byte{2, 0, 0, 80, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}
	six := make([]byte, 28)
	six[0], six[3], six[8], six[9], six[23], six[24] = unix.AF_INET6, 80, 0xfe, 0x80, 1, 3
	unspec := append([]byte{0, 0, 0, 80}, make([]byte, 12)...)
	for _, c := range []struct {
		in   []byte
		want string
		ok   bool
	}{
		{four, "127.0.0.1:80", true},
		{six, "[fe80::1%3]:80", true},
		{six[:24], "[fe80::1]:80", true},
		{unspec, "0.0.0.0:80", true},
		{six[:20], "", false},
		{four[:8], "", false},
		{append([]byte{2, 0, 0, 0}, make([]byte, 12)...), "", false},
		{append([]byte{1, 0, 0, 80}, make([]byte, 12)...), "", false},
	} {
		addr, ok := parseSockaddr(c.in)
		if ok != c.ok || ok && addr.String() != c.want {
			t.Errorf("%x: %v, %t, want %s, %t", c.in, addr, ok, c.want, c.ok)
		}
	}
}

// TestMakeModeUnderSignals: a signal that the launcher gets while it puts a socket into the program changes nothing for that.
func TestMakeModeUnderSignals(t *testing.T) {
	p := start(t, Options{Mode: Make, Made: func(*os.File, int) error { return nil }}, nil)
	defer storm(t, os.Getpid(), 0)()
	p.expect(t, "ok", "sockets", "20000")
}

// storm has the threads of a process get signals that Go's runtime ignores, with pauses, until calm.
func storm(t *testing.T, pid int, pause time.Duration) (calm func()) {
	ctx, stop := context.WithCancel(t.Context())
	var signals sync.WaitGroup
	signals.Go(func() {
		for ctx.Err() == nil {
			threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
			if err != nil {
				t.Error(err)
				return
			}
			for range 20 {
				for _, thread := range threads {
					tid, _ := strconv.Atoi(thread.Name())
					unix.Tgkill(pid, tid, unix.SIGURG)
				}
				time.Sleep(pause)
			}
		}
	})
	return func() {
		stop()
		signals.Wait()
	}
}

// TestErrorIsNoEnd: what polls as an error and nothing else, as the listener does for a moment, can be waited for all the
// same.
func TestErrorIsNoEnd(t *testing.T) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	r, w := os.NewFile(uintptr(pipe[0]), "reader"), pipe[1]
	defer r.Close()
	defer unix.Close(w)
	for { // a full one, which is not POLLOUT
		if _, err := unix.Write(w, make([]byte, 4096)); err != nil {
			break
		}
	}
	fd, err := newWatch(w)
	if err != nil {
		t.Fatal(err)
	}
	watch := os.NewFile(uintptr(fd), "watch")
	defer watch.Close()
	raw, err := watch.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	looks := 0
	for range 2 {
		if err := raw.Read(func(uintptr) bool {
			r.Close() // from then on it is POLLERR
			looks++
			return looks >= 2
		}); err != nil {
			t.Fatalf("after %d looks: %v", looks, err)
		}
	}
}

// TestErrorIsNoAnswer: nor is the program gone for it.
func TestErrorIsNoAnswer(t *testing.T) {
	var broken, quiet [2]int
	for _, pipe := range []*[2]int{&broken, &quiet} {
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
	}
	fd := broken[1]
	defer unix.Close(fd)
	defer unix.Close(quiet[0])
	defer unix.Close(quiet[1])
	unix.Close(broken[0]) // it polls as an error from now on,
	time.AfterFunc(20*time.Millisecond, func() {
		if err := unix.Dup3(quiet[0], fd, unix.O_CLOEXEC); err != nil { // until it is another that has nothing to tell
			t.Error(err)
		}
	})
	if found, err := receive(uintptr(fd), new(notification)); found != nothing || err != nil {
		t.Errorf("found %v, %v, want nothing", found, err)
	}
}

// BenchmarkStart is what the filter and its thread cost beside a plain start.
func BenchmarkStart(b *testing.B) {
	for _, mode := range []Mode{Fetch, Make, Off} {
		b.Run(mode.String(), func(b *testing.B) {
			for b.Loop() {
				cmd := exec.Command("/proc/self/exe")
				cmd.Args = []string{idleName} // which ends at once
				tap, err := Start(cmd, Options{Mode: mode})
				if err != nil {
					b.Fatal(err)
				}
				cmd.Wait()
				tap.Close()
			}
		})
	}
	b.Run("plain", func(b *testing.B) {
		for b.Loop() {
			cmd := exec.Command("/proc/self/exe")
			cmd.Args = []string{idleName}
			if err := cmd.Run(); cmd.ProcessState == nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkCall is a program's socket(2) and bind(2), as the program sees it.
func BenchmarkCall(b *testing.B) {
	for _, mode := range []Mode{Fetch, Make, Off} {
		b.Run(mode.String(), func(b *testing.B) {
			made := func(socket *os.File, _ int) error { return shareSocket(socket) }
			p, err := startProgram(Options{Mode: mode, Bind: func(Bind) error { return nil }, Made: made}, nil)
			if err != nil {
				b.Fatal(err)
			}
			defer p.end()
			if answer := p.do("bench", strconv.Itoa(b.N)); answer != "ok" {
				b.Error(answer)
			}
		})
	}
}
