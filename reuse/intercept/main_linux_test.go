package intercept

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// The test binary is the programs and the launchers of the tests too.
const roleVariable = "OVERLAP_INTERCEPT_TEST_ROLE"

func TestMain(m *testing.M) {
	Main()
	// Programs built with -race linger for a second before they exit.
	os.Setenv("GORACE", strings.TrimSpace(os.Getenv("GORACE")+" atexit_sleep_ms=0"))
	switch role := os.Getenv(roleVariable); role {
	case "":
		before := openDescriptors()
		goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
			if left := leftOpen(before); code == 0 && len(left) > 0 {
				fmt.Fprintln(os.Stderr, "descriptors left open:", left)
				code = 1
			}
			os.Exit(code)
		}))
	case "program":
		os.Exit(testProgram(os.Stdin, os.Stdout))
	default:
		os.Exit(testLauncher(role))
	}
}

// openDescriptors maps descriptors to what they are, without those that the
// runtime keeps.
func openDescriptors() map[string]string {
	open := map[string]string{}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		what, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || what == "anon_inode:[eventpoll]" || what == "anon_inode:[eventfd]" || strings.HasPrefix(what, "/proc/") {
			continue
		}
		open[e.Name()] = what
	}
	return open
}

func leftOpen(before map[string]string) (left []string) {
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		left = nil
		for fd, what := range openDescriptors() {
			if before[fd] == "" {
				left = append(left, fd+": "+what)
			}
		}
		if len(left) == 0 {
			break
		}
	}
	return left
}

// testProgram answers each line of in with a line on out, until in ends. What
// it binds stays bound.
func testProgram(in io.Reader, out io.Writer) int {
	var keep []any
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		verb := strings.Fields(lines.Text())
		answer, kept := testVerb(verb)
		keep = append(keep, kept)
		fmt.Fprintln(out, answer)
	}
	runtime.KeepAlive(keep)
	return 0
}

func testVerb(verb []string) (answer string, keep any) {
	switch verb[0] {
	case "listen": // as a Go server does
		ln, err := net.Listen(verb[1], verb[2])
		if err != nil {
			return errnoText(err), nil
		}
		raw, _ := ln.(*net.TCPListener).SyscallConn()
		flags := 0
		raw.Control(func(fd uintptr) { flags, _ = unix.FcntlInt(fd, unix.F_GETFL, 0) })
		if flags&unix.O_NONBLOCK == 0 {
			return "the listener blocks", ln
		}
		return "ok", ln
	case "bind":
		return bindRaw(verb[1], verb[2]), nil
	case "thread": // the same from a thread that is not the first
		answer := make(chan string)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			if unix.Gettid() == unix.Getpid() {
				go func() {
					runtime.LockOSThread()
					answer <- bindRaw(verb[1], verb[2])
				}()
				select {} // this goroutine keeps the first thread
			}
			answer <- bindRaw(verb[1], verb[2])
		}()
		return <-answer, nil
	case "threads": // threads N NETWORK ADDRESS: the same from N of them at once
		n, _ := strconv.Atoi(verb[1])
		answers, begin := make(chan string), make(chan struct{})
		for range n {
			go func() {
				runtime.LockOSThread()
				<-begin
				answers <- bindRaw(verb[2], verb[3])
			}()
		}
		close(begin)
		answer := "ok"
		for range n {
			if a := <-answers; a != "ok" {
				answer = a
			}
		}
		return answer, nil
	case "interruptible": // calls fail with EINTR at SIGUSR1
		signal.Notify(make(chan os.Signal, 1), unix.SIGUSR1)
		const restart = 0x10000000 // SA_RESTART
		action, get := signalAction(unix.SIGUSR1)
		action[1] &^= restart
		_, _, set := unix.Syscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGUSR1), uintptr(unsafe.Pointer(&action)), 0, signalMask, 0, 0)
		return errnoText(max(get, set)), nil
	case "trap": // trap NETWORK ADDRESS: bind where a filter answers sendmsg(2) with SIGSYS; is its handler there still?
		answer := make(chan string)
		go func() {
			runtime.LockOSThread() // never unlocked: the filter is the thread's
			filter := []unix.SockFilter{
				{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS},
				{Code: unix.BPF_JMP | unix.BPF_JEQ, Jf: 1, K: unix.SYS_SENDMSG},
				{Code: unix.BPF_RET, K: unix.SECCOMP_RET_TRAP},
				{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ALLOW},
			}
			unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
			prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
			_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
			bindRaw(verb[1], verb[2])
			action, get := signalAction(unix.SIGSYS)
			answer <- fmt.Sprint(errnoText(max(errno, get)), " ", action[0] != 0)
		}()
		return <-answer, nil
	case "child":
		cmd := exec.Command("/proc/self/exe")
		cmd.Stdin = strings.NewReader("bind " + verb[1] + " " + verb[2] + "\n")
		b, err := cmd.Output()
		if err != nil {
			return err.Error(), nil
		}
		return strings.TrimSpace(string(b)), nil
	case "leave": // leave NETWORK ADDRESS: what a child binds is told on standard error, whatever becomes of this process
		cmd := exec.Command("/proc/self/exe")
		cmd.Stdin = strings.NewReader("masked " + verb[1] + " " + verb[2] + "\n")
		cmd.Stdout = os.Stderr
		return errnoText(cmd.Run()), nil
	case "masked": // the same as bind, and the signals that are blocked then
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		answer := bindRaw(verb[1], verb[2])
		var mask uint64
		unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, 0, uintptr(unsafe.Pointer(&mask)), signalMask, 0, 0)
		return fmt.Sprintf("%s %x", answer, mask), nil
	case "unix":
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrUnix{Name: "@overlap-intercept-" + strconv.Itoa(os.Getpid()) + strings.Repeat("x", 30)})
		}
		return errnoText(err), nil
	case "short": // an address that ends before its memory does not
		fd, _ := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		defer unix.Close(fd)
		_, _, errno := unix.Syscall(unix.SYS_BIND, uintptr(fd), 8, 16)
		return errnoText(errno), nil
	case "mptcp":
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
		if err == nil {
			unix.Close(fd)
		}
		return errnoText(err), nil
	case "socket": // socket TYPE: which flags does it have?
		typ, _ := strconv.Atoi(verb[1])
		fd, err := unix.Socket(unix.AF_INET6, typ, 0)
		if err != nil {
			return errnoText(err), nil
		}
		defer unix.Close(fd)
		status, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		share, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT)
		return fmt.Sprintf("nonblock=%t cloexec=%t reuseport=%d", status&unix.O_NONBLOCK != 0, flags&unix.FD_CLOEXEC != 0, share), nil
	case "sockets": // sockets N: each is one, and the same number comes again
		n, _ := strconv.Atoi(verb[1])
		first := -1
		for i := range n {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return errnoText(err), nil
			}
			if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
				return fmt.Sprintf("socket %d is descriptor %d: %v", i, fd, err), nil
			}
			if i == 0 {
				first = fd
			}
			if fd != first {
				return fmt.Sprintf("socket %d is descriptor %d, not %d", i, fd, first), nil
			}
			unix.Close(fd)
		}
		return "ok", nil
	case "exhaust": // sockets until there is none left
		unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 32, Max: 32})
		for {
			if _, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); err != nil {
				return errnoText(err), nil
			}
		}
	case "fds": // what an execve would pass on is what came through one
		var fds []string
		for fd := range 256 {
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
				fds = append(fds, strconv.Itoa(fd))
			}
		}
		return strings.Join(fds, " "), nil
	case "bench": // bench N
		n, _ := strconv.Atoi(verb[1])
		for range n {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err != nil {
				return errnoText(err), nil
			}
			unix.Bind(fd, &unix.SockaddrInet4{Port: 1, Addr: [4]byte{192, 0, 2, 1}}) // nobody has it
			unix.Close(fd)
		}
		return "ok", nil
	case "bench-option": // bench-option N: an option that nobody looks at
		n, _ := strconv.Atoi(verb[1])
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		for range n {
			err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1))
		}
		unix.Close(fd)
		return errnoText(err), nil
	case "option": // option NAME NETWORK ADDRESS: set it, bind, then steer
		return bindWithOption(verb[1], verb[2], verb[3]), nil
	case "hang": // until killed
		fmt.Println(os.Getpid())
		for {
			unix.Pause()
		}
	case "ids":
		return fmt.Sprintf("pid=%d leader=%t uid=%d args=%q dir=%s variable=%s", os.Getpid(), unix.Getpgrp() == os.Getpid(), os.Getuid(), os.Args[1:], workingDirectory(), os.Getenv("SOME_VARIABLE")), nil
	case "status": // fields of /proc/self/status
		b, _ := os.ReadFile("/proc/self/status")
		for line := range strings.Lines(string(b)) {
			if value, ok := strings.CutPrefix(line, verb[1]+":"); ok {
				return strings.TrimSpace(value), nil
			}
		}
		return "none", nil
	case "nested":
		cmd := exec.Command("/proc/self/exe")
		_, err := Start(cmd, Options{})
		return fmt.Sprintf("nested=%t process=%v", errors.Is(err, ErrNested), cmd.ProcessState != nil), nil
	}
	return "unknown verb", nil
}

// signalMask is the size of the kernel's.
const signalMask = 8

// signalAction is the kernel's struct sigaction: the handler, flags, and more.
func signalAction(s syscall.Signal) (action [4]uint64, errno syscall.Errno) {
	_, _, errno = unix.Syscall6(unix.SYS_RT_SIGACTION, uintptr(s), 0, uintptr(unsafe.Pointer(&action)), signalMask, 0, 0)
	return action, errno
}

func workingDirectory() string {
	dir, _ := os.Getwd()
	return dir
}

// bindWithOption makes a socket, sets an option, binds it, and detaches the steering program that there is none
// of: EINVAL for a socket that does not share its port (net/core/sock_reuseport.c, reuseport_detach_prog).
func bindWithOption(option, network, address string) string {
	typ := unix.SOCK_STREAM
	if network == "udp" {
		typ = unix.SOCK_DGRAM
	}
	addr := netip.MustParseAddrPort(address)
	domain, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()})
	if addr.Addr().Is4() {
		domain, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	}
	fd, err := unix.Socket(domain, typ, 0)
	if err != nil {
		return errnoText(err)
	}
	defer unix.Close(fd)
	const loopback = 1
	switch option {
	case "v6only":
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	case "dual":
		err = errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1), unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0))
	case "device":
		err = unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo")
	case "index":
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, loopback)
	case "none":
		err = unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "")
	case "wrong":
		errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1),
			unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "nowhere"))
		_, _, err = unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 8, 4, 0)
	}
	set := errnoText(err)
	if err := unix.Bind(fd, sa); err != nil {
		return errnoText(err)
	}
	return set + " " + errnoText(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_REUSEPORT_BPF, 0))
}

// bindRaw makes and binds a socket that stays open.
func bindRaw(network, address string) string {
	typ := unix.SOCK_STREAM
	if strings.HasPrefix(network, "udp") {
		typ = unix.SOCK_DGRAM
	}
	addr := netip.MustParseAddrPort(address)
	var fd int
	var err error
	if addr.Addr().Is4() && !strings.HasSuffix(network, "6") {
		if fd, err = unix.Socket(unix.AF_INET, typ, 0); err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()})
		}
	} else {
		if fd, err = unix.Socket(unix.AF_INET6, typ, 0); err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()})
		}
	}
	return errnoText(err)
}

func errnoText(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil || errors.As(err, &errno) && errno == 0:
		return "ok"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// running is a started test program.
type running struct {
	cmd   *exec.Cmd
	tap   *Tap
	in    io.WriteCloser
	lines *bufio.Scanner
	ended bool
}

// startProgram starts the test binary as a program. prepare may change its
// command.
func startProgram(o Options, prepare func(*exec.Cmd)) (*running, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"=program")
	cmd.Stderr = os.Stderr
	if prepare != nil {
		prepare(cmd)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	tap, err := Start(cmd, o)
	if err != nil {
		return nil, err
	}
	return &running{cmd: cmd, tap: tap, in: in, lines: bufio.NewScanner(out)}, nil
}

func start(t *testing.T, o Options, prepare func(*exec.Cmd)) *running {
	t.Helper()
	p, err := startProgram(o, prepare)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.end() })
	return p
}

// do has the program do something and returns its answer.
func (p *running) do(verb ...string) string {
	if _, err := fmt.Fprintln(p.in, strings.Join(verb, " ")); err != nil {
		return "write: " + err.Error()
	}
	if !p.lines.Scan() {
		return fmt.Sprint("no answer: ", p.lines.Err())
	}
	return p.lines.Text()
}

func (p *running) expect(t *testing.T, want string, verb ...string) {
	t.Helper()
	if got := p.do(verb...); got != want {
		t.Errorf("%s: %s, want %s", strings.Join(verb, " "), got, want)
	}
}

// end ends the program by the end of its input.
func (p *running) end() error {
	if p.ended {
		return nil
	}
	p.ended = true
	p.in.Close()
	err := p.cmd.Wait()
	p.tap.Close()
	return err
}

// reserve holds a port of address such that nobody can bind it without
// SO_REUSEPORT, and nobody else gets it from the kernel.
func reserve(network, ip string) (address string, release func(), err error) {
	typ := unix.SOCK_STREAM
	if network == "udp" {
		typ = unix.SOCK_DGRAM
	}
	addr := netip.MustParseAddr(ip)
	domain, sa := unix.AF_INET, unix.Sockaddr(nil)
	if addr.Is6() {
		domain, sa = unix.AF_INET6, &unix.SockaddrInet6{Addr: addr.As16()}
	} else {
		sa = &unix.SockaddrInet4{Addr: addr.As4()}
	}
	fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", nil, err
	}
	if err := unix.Bind(fd, sa); err != nil {
		unix.Close(fd)
		return "", nil, err
	}
	// Set after the bind: before it the kernel might choose a port that is
	// shared already.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		unix.Close(fd)
		return "", nil, err
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		unix.Close(fd)
		return "", nil, err
	}
	port := 0
	switch b := bound.(type) {
	case *unix.SockaddrInet4:
		port = b.Port
	case *unix.SockaddrInet6:
		port = b.Port
	}
	return netip.AddrPortFrom(addr, uint16(port)).String(), func() { unix.Close(fd) }, nil
}

func reserved(t *testing.T, network, ip string) string {
	t.Helper()
	address, release, err := reserve(network, ip)
	if err != nil {
		if ip == "::1" && (errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)) {
			missing(t, "no IPv6 on the loopback interface: sysctl net.ipv6.conf.lo.disable_ipv6=0")
		}
		t.Fatal(err)
	}
	t.Cleanup(release)
	return address
}

// share is the callback that the launcher has in earnest.
func share(b Bind) error { return shareSocket(b.Socket) }

func shareSocket(socket *os.File) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	})
	return errors.Join(err, set)
}

// missing skips a test that the machine cannot run, or fails where all of them
// are to run.
func missing(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("OVERLAP_TEST_REQUIRE") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// testLauncher is a process that starts programs, in its own circumstances.
func testLauncher(role string) int {
	complain := func(what ...any) int {
		fmt.Println(what...)
		return 1
	}
	switch role {
	case "start-command", "start-plainly":
		start := StartCommand
		if role == "start-plainly" {
			start = (*exec.Cmd).Start
		}
		if err := startBesideBeats(start, os.Args[1]); err != nil {
			return complain(err)
		}
		return 0
	case "launch-and-wait": // until killed
		p, err := startProgram(Options{Mode: Fetch, Bind: share, ParentDeath: slices.Contains(os.Args, "parent-death")}, nil)
		if err != nil {
			return complain(err)
		}
		fmt.Println(p.do("hang"))
		io.Copy(io.Discard, os.Stdin)
		p.cmd.Process.Kill()
		p.end()
		return 0
	case "borrow-and-die": // borrow-and-die DELAY ADDRESS: of a program's child
		delay, _ := time.ParseDuration(os.Args[1])
		p, err := startProgram(Options{Mode: Make, ParentDeath: true, Made: func(*os.File, int) error { return nil }, Bind: func(b Bind) error {
			time.AfterFunc(delay, func() { unix.Kill(os.Getpid(), unix.SIGKILL) })
			_, err := b.Borrow()
			return err
		}}, nil)
		if err != nil {
			return complain(err)
		}
		p.do("leave", "udp", os.Args[2])
		return 0
	case "share": // whoever we are, sharing works
		address, _, err := reserve("tcp", "127.0.0.1")
		if err != nil {
			return complain(err)
		}
		p, err := startProgram(Options{Bind: share}, nil)
		if err != nil {
			return complain(err)
		}
		answer := p.do("listen", "tcp", address)
		nnp := p.do("status", "NoNewPrivs")
		fmt.Printf("uid=%d mode=%v listen=%s no_new_privs=%s,%t\n", os.Getuid(), p.tap.Mode(), answer, nnp, p.tap.NoNewPrivs())
		p.end()
		return 0
	case "few-tasks": // a launcher that may not have as many threads and processes as it would like
		sleep := func() (*exec.Cmd, error) {
			cmd := exec.Command("sleep", "60")
			_, err := Start(cmd, Options{Mode: Fetch, Bind: share})
			return cmd, err
		}
		first, err := sleep()
		if err != nil {
			return complain(err)
		}
		programs := []*exec.Cmd{first}
		limit := uint64(threads() + 1 + 24)
		if err := unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return complain(err)
		}
		failed := 0
		for range 60 {
			if cmd, err := sleep(); err == nil {
				programs = append(programs, cmd)
			} else if failed++; !strings.Contains(err.Error(), "resource temporarily unavailable (at a limit of processes and threads") {
				return complain(err)
			}
		}
		for _, cmd := range programs {
			cmd.Process.Kill()
			cmd.Wait()
		}
		fmt.Println("started some:", len(programs) > 1, "failed:", failed > 0)
		return 0
	case "no-access": // a launcher without CAP_SYS_PTRACE, a program of another user
		other := func(cmd *exec.Cmd) {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}
		address, _, err := reserve("tcp", "127.0.0.1")
		if err != nil {
			return complain(err)
		}
		_, err = startProgram(Options{Bind: share}, other)
		fmt.Printf("auto: no access=%t\n", errors.Is(err, ErrNoAccess))
		binds := 0
		p, err := startProgram(Options{
			ParentDeath: true,
			Bind:        func(Bind) error { binds++; return nil },
			Made:        func(socket *os.File, _ int) error { return shareSocket(socket) },
		}, other)
		if err != nil {
			return complain(err)
		}
		answer := p.do("listen", "tcp", address)
		p.end()
		fmt.Printf("mode=%v listen=%s binds=%d\n", p.tap.Mode(), answer, binds)
		return 0
	case "auto": // a launcher that may make the program's sockets where it is PID 1
		p, err := startProgram(Options{Bind: share, Made: func(socket *os.File, _ int) error { return shareSocket(socket) }}, nil)
		if err != nil {
			return complain(err)
		}
		p.end()
		fmt.Println(p.tap.Mode())
		return 0
	}
	return complain("unknown role", role)
}
