package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func init() { children["ports"] = fewPorts }

// TestSourcePorts runs in a network namespace of its own that has eight ports to
// connect from: clients spread over 127.0.0.0/24 have enough, those of ::1 run out of
// them, and that is said and not booked as the server's failure.
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
