package launcher_test

import (
	"bytes"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// closedLoop is a client with connections that it keeps: each has one request under way. It is one thread without
// timers, so that the noise of a comparison is the machine's alone.
type closedLoop struct {
	epoll int
	conns []int
	reply []byte // the first answer; every other is as long
}

var loopRequest = []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")

func newClosedLoop(t testing.TB, addr string, conns int) *closedLoop {
	t.Helper()
	to := netip.MustParseAddrPort(addr)
	l := &closedLoop{}
	var err error
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	for range conns {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
		}
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		}
		if err == nil {
			err = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
		}
		if err != nil {
			t.Fatal(err)
		}
		l.conns = append(l.conns, fd)
	}
	return l
}

func (l *closedLoop) close() {
	for _, fd := range l.conns {
		unix.Close(fd)
	}
	unix.Close(l.epoll)
}

// turn sends n requests, and returns how long it took until all were answered.
func (l *closedLoop) turn(t testing.TB, n int) time.Duration {
	t.Helper()
	began := time.Now()
	sent, events, buf := 0, make([]unix.EpollEvent, len(l.conns)), make([]byte, 64<<10)
	send := func(fd int) {
		if _, err := unix.Write(fd, loopRequest); err != nil {
			t.Fatal(err)
		}
		sent++
	}
	for _, fd := range l.conns {
		send(fd)
	}
	for done := 0; done < sent; {
		ready, err := unix.EpollWait(l.epoll, events, int(waitFor.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil || ready == 0 {
			t.Fatalf("%d of %d requests are answered: %v", done, n, err)
		}
		for _, e := range events[:ready] {
			got, err := unix.Read(int(e.Fd), buf)
			if err != nil || got == 0 {
				t.Fatalf("a kept connection is closed: %v", err)
			}
			if l.reply == nil {
				l.reply = bytes.Clone(buf[:got])
			}
			if got != len(l.reply) || !bytes.HasPrefix(buf, []byte("HTTP/1.1 200 OK\r\n")) {
				t.Fatalf("%q is answered, not %q", buf[:got], l.reply)
			}
			if done++; sent < n {
				send(int(e.Fd))
			}
		}
	}
	return time.Since(began)
}

// execFiltered becomes a program with a seccomp filter that does nothing: what the kernel takes for having one at all.
func execFiltered(command []string) error {
	runtime.LockOSThread()
	filter := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW,
		uintptr(unsafe.Pointer(&program))); errno != 0 {
		return errno
	}
	return unix.Exec(command[0], command, os.Environ())
}

// startBare starts a program that set configures, without a launcher.
func startBare(b *testing.B, set func(*service, string), addr string, filtered bool) *exec.Cmd {
	b.Helper()
	s := newService(b)
	set(s, addr)
	command := s.c.Command
	if filtered {
		command = append([]string{s.exe, "filtered"}, command...)
	}
	cmd := exec.Command(command[0], command[1:]...)
	// What a launcher's program has, but for the launcher.
	cmd.Env = append(os.Environ(), envRoot+"="+s.root, "OVERLAP_NAME=web", "OVERLAP_GENERATION=1")
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	eventually(b, func() error {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err
	})
	return cmd
}

// BenchmarkServe compares the requests a second that a program answers on kept connections under a launcher with those of the
// same program alone. The machine's speed changes from second to second, so the turns are of milliseconds, in random order. Equal
// processes differ by a percent, by where their memory lies: each iteration has new ones, and a second one alone says
// what no difference looks like ("control"). "filter" is the program alone with a filter that does nothing. It reports
// means of the iterations' ratios and their standard errors, in percent of them.
func BenchmarkServe(b *testing.B) {
	for name, set := range map[string]func(*service, string){
		"go": goServer("plain"),
		"nginx": func(s *service, addr string) {
			nginx("", 1)(s, addr)
			conf := filepath.Join(s.root, "nginx.conf")
			text, err := os.ReadFile(conf)
			if err != nil {
				s.t.Fatal(err)
			}
			writeFile(s.t, conf, []byte(strings.Replace(string(text), "http {", "http {\n  keepalive_requests 1000000000;", 1)))
		},
	} {
		b.Run(name, func(b *testing.B) {
			const turns, requests, clients = 300, 500, 16
			var launched, filtered, control []float64
			for b.Loop() {
				s, addr := newService(b), free(b, "tcp", "127.0.0.1")
				set(s, addr)
				s.start()
				s.serving(0)
				addrs, bare := []string{addr}, []*exec.Cmd{}
				for _, filter := range []bool{true, false, false} {
					addrs = append(addrs, free(b, "tcp", "127.0.0.1"))
					bare = append(bare, startBare(b, set, addrs[len(addrs)-1], filter))
				}
				took := make([][]float64, len(addrs))
				var loops []*closedLoop
				for _, addr := range addrs {
					loops = append(loops, newClosedLoop(b, addr, clients))
					loops[len(loops)-1].turn(b, 10*requests) // warm
				}
				for range turns {
					for _, i := range rand.Perm(len(loops)) {
						took[i] = append(took[i], loops[i].turn(b, requests).Seconds())
					}
				}
				alone := math.Sqrt(middle(took[2]) * middle(took[3]))
				launched = append(launched, alone/middle(took[0]))
				filtered = append(filtered, alone/middle(took[1]))
				control = append(control, middle(took[3])/middle(took[2]))
				b.ReportMetric(requests/alone, "requests/s")
				for _, l := range loops {
					l.close()
				}
				for _, cmd := range bare {
					cmd.Process.Signal(unix.SIGTERM)
					cmd.Wait()
				}
				s.runs[0].cmd.Process.Signal(unix.SIGTERM)
				s.code(s.runs[0])
			}
			for what, ratios := range map[string][]float64{"ratio": launched, "filter": filtered, "control": control} {
				mean, deviation := meanError(ratios)
				b.ReportMetric(mean, what)
				b.ReportMetric(100*deviation, what+"-±%")
			}
			b.Logf("launched %.3f, filtered %.3f, of two alone %.3f", launched, filtered, control)
		})
	}
}

func middle(of []float64) float64 {
	slices.Sort(of)
	return of[len(of)/2]
}

// meanError is the mean and its standard error.
func meanError(of []float64) (mean, deviation float64) {
	for _, v := range of {
		mean += v / float64(len(of))
	}
	for _, v := range of {
		deviation += (v - mean) * (v - mean)
	}
	return mean, math.Sqrt(deviation / float64(len(of)) / max(1, float64(len(of)-1)))
}
