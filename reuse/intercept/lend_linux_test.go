package intercept

import (
	"context"
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
	r := borrower{t: t}
	p := start(t, Options{Mode: Make, Bind: r.bind, Made: func(*os.File, int) error { return nil }}, nil)
	ctx, stop := context.WithCancel(t.Context())
	var signals sync.WaitGroup
	signals.Go(func() {
		for ctx.Err() == nil {
			threads, err := os.ReadDir("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/task")
			if err != nil {
				t.Error(err)
				return
			}
			for range 20 {
				for _, thread := range threads {
					tid, _ := strconv.Atoi(thread.Name())
					unix.Tgkill(p.cmd.Process.Pid, tid, unix.SIGURG) // as the runtime does to preempt
				}
				time.Sleep(50 * time.Microsecond)
			}
		}
	})
	const binds = 200
	for range binds {
		p.expect(t, "ok", "bind", "udp", reserved(t, "udp", "127.0.0.1"))
	}
	stop()
	signals.Wait()
	if n := len(r.all()); n != binds {
		t.Errorf("%d callbacks for %d binds", n, binds)
	}
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

// Where the thread has a tracer already, the error says so, and the bind goes on.
func TestMakeModeBorrowsFromTheTraced(t *testing.T) {
	var mu sync.Mutex
	var refused error
	// The tracer lets nothing go on that a signal stops, such as the runtime's for preemption on a slow machine.
	calm := func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "GODEBUG=asyncpreemptoff=1") }
	p := start(t, Options{Mode: Make, Made: func(*os.File, int) error { return nil }, Bind: func(b Bind) error {
		mu.Lock()
		defer mu.Unlock()
		_, refused = b.Borrow()
		return nil
	}}, calm)
	defer traceAll(t, p.cmd.Process.Pid)()
	p.expect(t, "EADDRINUSE", "bind", "udp", reserved(t, "udp", "127.0.0.1"))
	mu.Lock()
	if !errors.Is(refused, os.ErrPermission) {
		t.Errorf("refused by %v, want a permission", refused)
	}
	mu.Unlock()
}
