package intercept

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// copies is how many descriptors of this process are the socket.
func copies(t *testing.T, ino uint64) (n int) {
	t.Helper()
	link := "socket:[" + strconv.FormatUint(ino, 10) + "]"
	for _, to := range openDescriptors() {
		if to == link {
			n++
		}
	}
	return n
}

// sockets is how many a process has.
func sockets(t *testing.T, pid int) (n int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd/", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink(dir + e.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// traceAll traces the threads that a process has, until release.
func traceAll(t *testing.T, pid int) (release func()) {
	t.Helper()
	stop, ready := make(chan struct{}), make(chan error)
	var trace func()
	trace = func() {
		runtime.LockOSThread() // and its end ends the tracing
		if unix.Gettid() == unix.Getpid() {
			go trace()
			<-stop
			runtime.UnlockOSThread()
			return
		}
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		for _, thread := range threads {
			tid, _ := strconv.Atoi(thread.Name())
			err = errors.Join(err, unix.PtraceSeize(tid))
		}
		ready <- err
		<-stop
	}
	go trace()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	return sync.OnceFunc(func() { close(stop) })
}

// borrower is a Bind callback that shares the port of what it can borrow.
type borrower struct {
	record
	t      *testing.T
	wants  func(Bind) bool
	answer error
}

func (r *borrower) bind(b Bind) error {
	if r.wants == nil || r.wants(b) {
		socket, err := b.Borrow()
		if err != nil {
			return err
		}
		again, err := b.Borrow()
		if err != nil || again != socket {
			return errors.Join(errors.New("a second copy"), err)
		}
		if err := shareSocket(socket); err != nil {
			return err
		}
		if n := copies(r.t, b.Inode); n != 1 {
			return unix.EXFULL
		}
	}
	b.tap, b.lend = nil, nil
	r.Lock()
	defer r.Unlock()
	r.binds = append(r.binds, b)
	return r.answer
}

// In Make mode a UDP socket is the program's own, and is reached when it is bound: one bind, one callback, and no copy stays
// on either side.
func TestMakeModeBorrows(t *testing.T) {
	r := borrower{t: t}
	p := start(t, Options{Mode: Make, Bind: r.bind, Made: func(*os.File, int) error { return nil }}, nil)
	had := sockets(t, p.cmd.Process.Pid)
	for _, verb := range []string{"bind", "thread"} {
		for _, ip := range []string{"127.0.0.1", "::1"} {
			address := reserved(t, "udp", ip)
			before := len(r.all())
			p.expect(t, "ok", verb, "udp", address)
			binds := r.all()
			if len(binds) != before+1 {
				t.Fatalf("%s %s: %d callbacks", verb, ip, len(binds)-before)
			}
			b := binds[before]
			if b.Addr != netip.MustParseAddrPort(address) || b.Inode == 0 || b.Socket != nil {
				t.Errorf("callback got %+v", b)
			}
			if n := copies(t, b.Inode); n != 0 {
				t.Errorf("%d copies of the socket bound to %s are left", n, b.Addr)
			}
		}
	}
	p.expect(t, "ok", "bind", "udp", "127.0.0.1:0")
	p.expect(t, "nonblock=false cloexec=false reuseport=0", "socket", strconv.Itoa(unix.SOCK_DGRAM))
	if n := sockets(t, p.cmd.Process.Pid) - had; n != 5 {
		t.Errorf("the program has %d sockets more, want the 5 that it bound", n)
	}
}

// What the callback says after it has borrowed is the program's answer.
func TestMakeModeBorrowsAndRefuses(t *testing.T) {
	r := borrower{t: t, answer: os.NewSyscallError("bind", unix.EDOM)}
	p := start(t, Options{Mode: Make, Bind: r.bind, Made: func(*os.File, int) error { return nil }}, nil)
	address := reserved(t, "udp", "127.0.0.1")
	for range 3 {
		p.expect(t, "EDOM", "bind", "udp", address)
	}
	if n := len(r.all()); n != 3 {
		t.Errorf("%d callbacks for 3 binds", n)
	}
}

// What is not asked for, and TCP, is not borrowed.
func TestMakeModeBorrowsWhatItIsAskedFor(t *testing.T) {
	r := borrower{t: t, wants: func(b Bind) bool {
		if b.Network == "tcp" {
			if _, err := b.Borrow(); !errors.Is(err, ErrNoAccess) {
				t.Errorf("a TCP socket was borrowed: %v", err)
			}
		}
		return false
	}}
	p := start(t, Options{Mode: Make, Bind: r.bind, Made: func(*os.File, int) error { return nil }}, nil)
	p.expect(t, "EADDRINUSE", "bind", "udp", reserved(t, "udp", "127.0.0.1"))
	p.expect(t, "EADDRINUSE", "bind", "tcp", reserved(t, "tcp", "127.0.0.1"))
}

// A program under signals of its own gives its sockets all the same, and handles each signal.
func TestMakeModeBorrowsUnderSignals(t *testing.T) {
	const binds = 200
	r := borrower{t: t}
	bindUnderSignals(t, binds, r.bind)
	if n := len(r.all()); n != binds {
		t.Errorf("%d callbacks for %d binds", n, binds)
	}
}

// So it does where each signal ends the call (before Linux 5.19): it is asked about anew, and no descriptor is left.
func TestMakeModeBorrowsUnderSignalsWithoutWait(t *testing.T) {
	defer func(flag uintptr) { waitKillable = flag }(waitKillable)
	waitKillable = 0
	const binds = 200
	shared := map[uint64]bool{}
	r := borrower{t: t}
	p := bindUnderSignals(t, binds, func(b Bind) error {
		err := r.bind(b)
		if err == nil {
			shared[b.Inode] = true
		} else if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ESRCH) {
			t.Error(err)
		}
		return nil
	})
	before := sockets(t, p.cmd.Process.Pid)
	p.end()
	if len(shared) != binds || before != binds {
		t.Errorf("%d sockets shared of %d, and the program has %d", len(shared), binds, before)
	}
}

// bindUnderSignals has a program bind while each of its threads gets signals.
func bindUnderSignals(t *testing.T, binds int, bind func(Bind) error) *running {
	t.Helper()
	p := start(t, Options{Mode: Make, Bind: bind, Made: func(*os.File, int) error { return nil }}, nil)
	defer storm(t, p.cmd.Process.Pid, 50*time.Microsecond)()
	for range binds {
		p.expect(t, "ok", "bind", "udp", reserved(t, "udp", "127.0.0.1"))
	}
	return p
}

// A signal that comes while the launcher is busy with the socket is handled, and the bind does not fail with EINTR, as
// bind(2) never does.
func TestMakeModeBorrowsUninterrupted(t *testing.T) {
	r := borrower{t: t}
	p := start(t, Options{Mode: Make, Made: func(*os.File, int) error { return nil }, Bind: func(b Bind) error {
		err := r.bind(b)
		unix.Tgkill(b.PID, int(b.lend.(*lending).call.n.TID), unix.SIGUSR1)
		time.Sleep(20 * time.Millisecond) // what it is busy with
		return err
	}}, nil)
	p.expect(t, "ok", "interruptible")
	for range 5 {
		p.expect(t, "ok", "bind", "udp", reserved(t, "udp", "127.0.0.1"))
	}
	if n := len(r.all()); n != 5 {
		t.Errorf("%d callbacks for 5 binds", n)
	}
}

// What is answered when a bind comes once more is for that socket and address alone: the call may have been left out
// (longjmp), and another socket has its descriptor.
func TestAnswerOfOneSocket(t *testing.T) {
	address := netip.MustParseAddrPort("127.0.0.1:53")
	for name, c := range map[string]struct {
		tid  uint32
		b    Bind
		want bool
	}{
		"the same":        {1, Bind{Inode: 7, Addr: address}, true},
		"another thread":  {2, Bind{Inode: 7, Addr: address}, false},
		"another socket":  {1, Bind{Inode: 8, Addr: address}, false},
		"another address": {1, Bind{Inode: 7, Addr: netip.MustParseAddrPort("127.0.0.1:54")}, false},
	} {
		var a again
		a.put(1, Bind{Inode: 7, Addr: address}, unix.EDOM)
		if verdict, ok := a.take(c.tid, c.b); ok != c.want || ok && verdict != unix.EDOM {
			t.Errorf("%s: %v, %t", name, verdict, ok)
		}
		if verdict, ok := a.take(c.tid, c.b); ok {
			t.Errorf("%s: a second time %v", name, verdict)
		}
	}
}

// However many threads bind at once, as a server with one for each processor of a large machine: each does it once.
func TestMakeModeBorrowsFromManyThreads(t *testing.T) {
	const binds = 100
	r := borrower{t: t}
	p := start(t, Options{Mode: Make, Made: func(*os.File, int) error { return nil }, Bind: func(b Bind) error {
		if len(r.all()) >= 2*binds {
			return unix.ELOOP
		}
		return r.bind(b)
	}}, nil)
	p.expect(t, "ok", "threads", strconv.Itoa(binds), "udp", reserved(t, "udp", "127.0.0.1"))
	if n := len(r.all()); n != binds {
		t.Errorf("%d callbacks for %d binds", n, binds)
	}
}

// A thread that is stopped (SIGSTOP) while it gives its socket is stopped then, and goes on when it is continued.
func TestMakeModeBorrowsFromTheStopped(t *testing.T) {
	delays := make(chan time.Duration, 1)
	r := borrower{t: t, wants: func(b Bind) bool {
		tid := int(b.lend.(*lending).call.n.TID)
		select {
		case delay := <-delays:
			time.AfterFunc(delay, func() { unix.Tgkill(b.PID, tid, unix.SIGSTOP) })
		default: // before Linux 5.19 a bind can be seen twice
		}
		return true
	}}
	p := start(t, Options{Mode: Make, Bind: r.bind, Made: func(*os.File, int) error { return nil }}, nil)
	pid := p.cmd.Process.Pid
	for i := range 30 {
		delay := time.Duration(i) * 20 * time.Microsecond
		delays <- delay
		answer := make(chan string)
		address := reserved(t, "udp", "127.0.0.1")
		go func() { answer <- p.do("bind", "udp", address) }()
		for deadline := time.Now().Add(10 * time.Second); !stopped(t, pid); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%v after the bind: it is not stopped", delay)
			}
		}
		unix.Kill(pid, unix.SIGCONT)
		if got := <-answer; got != "ok" {
			t.Errorf("%v after the bind: it got %s", delay, got)
		}
	}
}

// stopped says whether a process is, and is not traced.
func stopped(t *testing.T, pid int) bool {
	t.Helper()
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(stat), ") T ")
}

// A filter of the program's own that answers a call with SIGSYS keeps the port from being shared, and the program has its handler
// after that.
func TestMakeModeBorrowsUnderAnotherFilter(t *testing.T) {
	r := borrower{t: t}
	p := start(t, Options{Mode: Make, Bind: r.bind, Made: func(*os.File, int) error { return nil }}, nil)
	p.expect(t, "ok true", "trap", "udp", reserved(t, "udp", "127.0.0.1"))
	if n := len(r.all()); n != 0 {
		t.Errorf("%d sockets were lent", n)
	}
	p.expect(t, "ok", "bind", "udp", reserved(t, "udp", "127.0.0.1"))
}

// A program that is killed while it gives its socket ends, and its launcher serves the others.
func TestMakeModeBorrowsFromTheKilled(t *testing.T) {
	for i := range 20 {
		r := borrower{t: t, wants: func(b Bind) bool {
			time.AfterFunc(time.Duration(i)*20*time.Microsecond, func() { unix.Kill(b.PID, unix.SIGKILL) })
			return true
		}}
		p, err := startProgram(Options{Mode: Make, Bind: r.bind, Made: func(*os.File, int) error { return nil }}, nil)
		if err != nil {
			t.Fatal(err)
		}
		address := reserved(t, "udp", "127.0.0.1")
		fmt.Fprintln(p.in, "bind udp", address)
		if err := AwaitEnd(p.cmd.Process.Pid); err != nil {
			t.Error(err)
		}
		p.cmd.Wait()
		if status := p.cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != unix.SIGKILL {
			t.Errorf("it ended with %v", p.cmd.ProcessState)
		}
		select {
		case <-p.tap.Done():
		case <-time.After(time.Minute):
			t.Fatal("the launcher does not see its end")
		}
		p.tap.Close()
	}
}

// A launcher that is killed leaves nothing of the program that is not itself: what was in the midst of giving its socket ends, and
// what was not goes on.
func TestMakeModeBorrowsAndDies(t *testing.T) {
	address := reserved(t, "udp", "127.0.0.1") // by one that outlives the launcher
	for i := range 25 {
		delay := time.Duration(i) * 30 * time.Microsecond
		cmd := launcher(t, "borrow-and-die", nil, delay.String(), address)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		cmd.Run() // until all that has its output has ended
		for line := range strings.Lines(out.String()) {
			if line = strings.TrimSpace(line); line != "ENOSYS 0" && line != "EADDRINUSE 0" {
				t.Errorf("%v after the bind: %s", delay, line)
			}
		}
	}
}

// Where the thread has a tracer already, the error says so, and the bind goes on.
func TestMakeModeBorrowsFromTheTraced(t *testing.T) {
	var mu sync.Mutex
	var refused error
	p := start(t, Options{Mode: Make, Made: func(*os.File, int) error { return nil }, Bind: func(b Bind) error {
		mu.Lock()
		defer mu.Unlock()
		_, refused = b.Borrow()
		return nil
	}}, func(cmd *exec.Cmd) {
		cmd.Env = append(cmd.Env, "GODEBUG=asyncpreemptoff=1") // a signal would stop it, and this tracer never continues it
	})
	defer traceAll(t, p.cmd.Process.Pid)()
	p.expect(t, "EADDRINUSE", "bind", "udp", reserved(t, "udp", "127.0.0.1"))
	mu.Lock()
	if !errors.Is(refused, os.ErrPermission) {
		t.Errorf("refused by %v, want a permission", refused)
	}
	mu.Unlock()
}
