package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() { children["ports"] = fewPorts }

// TestSourcePorts runs in a network namespace of its own that has eight ports to
// connect from: clients spread over 127.0.0.0/24 have enough, those of ::1 run out of
// them, and that is said and not booked as the server's failure. A port that nobody
// listens on refuses, also where TCP would connect a client to itself.
func TestSourcePorts(t *testing.T) {
	t.Parallel()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "BENCH_TEST_CHILD=ports")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EINVAL) ||
		strings.Contains(string(out), "set up namespace") {
		if os.Getenv("OVERLAP_TEST_REQUIRE") == "1" {
			t.Fatalf("no network namespace: %v\n%s", err, out)
		}
		t.Skipf("no network namespace: %v\n%s", err, out)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// A connection that does not stand at once is waited for, until the deadline.
func TestConnectTakesTime(t *testing.T) {
	t.Parallel()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	target := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port))
	d := newDialer(target, 0)

	// The queue holds one connection: SYNs of others are dropped, and sent again after 1 s.
	first, err := d.dial(time.Now().Add(10 * time.Second))
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := d.dial(time.Now().Add(100 * time.Millisecond)); causeOf(err) != Timeout {
		t.Fatalf("connect to a full queue: %v, want a time-out", err)
	}
	began := time.Now()
	late := make(chan error, 1)
	go func() {
		conn, err := d.dial(began.Add(20 * time.Second))
		if err == nil {
			conn.Close()
		}
		late <- err
	}()
	// The second SYN is on its way, or will find room: either is fine.
	time.Sleep(100 * time.Millisecond)
	accepted, _, err := unix.Accept(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(accepted)
	if err := <-late; err != nil {
		t.Errorf("connect to a queue that was full for a while: %v", err)
	}
}

// No client takes a port of the address that servers listen on.
func TestSourceIsNotTheTarget(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.251", "127.1.2.3"} {
		target, sources := netip.MustParseAddrPort(host+":80"), map[netip.Addr]bool{}
		for i := range 1000 {
			ip, ok := sourceFor(target, i)
			if !ok || ip == target.Addr() || !ip.IsLoopback() {
				t.Fatalf("%s, client %d: %v, %v", host, i, ip, ok)
			}
			sources[ip] = true
		}
		if len(sources) != 250 {
			t.Errorf("%s: %d sources, want 250", host, len(sources))
		}
	}
}

func TestLinkLocalTarget(t *testing.T) {
	t.Parallel()
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for _, zone := range []string{"lo", strconv.Itoa(lo.Index)} {
		target := netip.MustParseAddrPort("[fe80::1%" + zone + "]:80")
		if sa := newDialer(target, 0).target.(*unix.SockaddrInet6); sa.ZoneId != uint32(lo.Index) || sa.Port != 80 {
			t.Errorf("%s: %+v, want zone %d", target, sa, lo.Index)
		}
	}
}

// fewPorts is the child of TestSourcePorts.
func fewPorts() int {
	if err := setUpNamespace(); err != nil {
		fmt.Println("set up namespace:", err)
		return 1
	}
	for _, host := range []string{"127.0.0.1", "[::1]"} {
		ln, err := net.Listen("tcp", host+":8080")
		if err != nil {
			fmt.Println("set up namespace:", err)
			return 1
		}
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				go say(ok, true)(conn, bufio.NewReader(conn))
			}
		}()
		r, err := Load{Address: host + ":8080", Mode: KeepAlive, Clients: 64, Requests: 5000}.Run(context.Background(), nil)
		if r == nil {
			fmt.Println(err)
			return 1
		}
		fmt.Printf("%s: %d requests, %d failed, %v\n", host, r.Requests, r.Failed, err)
		if r.Failed != 0 || (host == "[::1]") != errors.Is(err, ErrGenerator) {
			return 1
		}
		if err != nil && !strings.Contains(err.Error(), "no source port left") {
			return 1
		}
	}
	for _, host := range []string{"127.0.0.1", "[::1]"} {
		// Nobody listens on one of the eight ports, so sooner or later a connection has
		// it at both ends. Linux tries ports as even as the range's first before others.
		r, err := Load{Address: host + ":60004", Clients: 1, Requests: 400}.Run(context.Background(), nil)
		if err != nil || r.ByCause[Refused] != 400 {
			fmt.Printf("%s: %v, want all refused: %+v\n", host, err, r)
			return 1
		}
	}
	return 0
}

func setUpNamespace() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("60000 60007"), 0)
}
