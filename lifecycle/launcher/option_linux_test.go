package launcher_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"overlap/lifecycle/control"
	"overlap/lifecycle/launcher"
	"overlap/reuse"
)

type controlFunc = func(network, address string, c syscall.RawConn) error

// withOption sets what the program sets before the bind.
func (c programConfig) withOption(before controlFunc) controlFunc {
	return func(network, address string, raw syscall.RawConn) error {
		if before != nil {
			if err := before(network, address, raw); err != nil {
				return err
			}
		}
		var err error
		return errors.Join(raw.Control(func(fd uintptr) { err = c.setOption(int(fd), false) }), err)
	}
}

// network is what makes package net take 0.0.0.0 at its word, where [::] is beside it.
func (c programConfig) network(addr string) string {
	if c.Option == "v6only" && strings.HasPrefix(addr, "0.0.0.0:") {
		return "tcp4"
	}
	return "tcp"
}

func (c programConfig) optionLater(ln net.Listener) error {
	raw, err := ln.(*net.TCPListener).SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(raw.Control(func(fd uintptr) { err = c.setOption(int(fd), true) }), err)
}

// setOption makes Option true, for a socket that is not bound yet or that listens.
func (c programConfig) setOption(fd int, listens bool) error {
	what, later := strings.CutSuffix(c.Option, " later")
	if what == "" || later != listens {
		return nil
	}
	switch what {
	case "v6only":
		if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); domain != unix.AF_INET6 {
			return err
		}
		return os.NewSyscallError(what, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1))
	case "device":
		return os.NewSyscallError(what, unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo"))
	case "slow":
		time.Sleep(2500 * time.Millisecond)
		return nil
	case "twice": // its first bind fails
		port, err := strconv.Atoi(c.Listen[0][strings.LastIndex(c.Listen[0], ":")+1:])
		if err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{192, 0, 2, 1}}); err != unix.EADDRNOTAVAIL {
			return fmt.Errorf("bind: %w", err)
		}
		return nil
	case "unshared": // as Jetty does
		return os.NewSyscallError(what, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 0))
	case "steer": // to its second socket
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return err
		}
		raw, err := bpf.Assemble([]bpf.Instruction{bpf.RetConstant{Val: 1}})
		if err != nil {
			return err
		}
		filter := []unix.SockFilter{{Code: raw[0].Op, K: raw[0].K}}
		return os.NewSyscallError(what, unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF,
			&unix.SockFprog{Len: 1, Filter: &filter[0]}))
	}
	return errors.New("unknown option " + what)
}

// TestMakeBothFamilies: 0.0.0.0 and [::] with IPV6_V6ONLY are two addresses, as Redis has them.
func TestMakeBothFamilies(t *testing.T) {
	reached(t, func(t *testing.T, s *service) {
		_, port, _ := net.SplitHostPort(free(t, "tcp", "")) // of both families
		s.goProgram(programConfig{Kind: "polite", Listen: []string{"0.0.0.0:" + port, "[::]:" + port}, Option: "v6only"})
		s.start()
		s.serving(0)
		eventually(t, func() error { // the first address is enough for the first generation to serve
			_, err := ask("[::1]:" + port)
			return err
		})
		for generation := 1; generation <= 3; generation++ {
			s.mustAsk("127.0.0.1:"+port, generation)
			s.mustAsk("[::1]:"+port, generation)
			if generation < 3 {
				s.reload()
			}
		}
	})
}

// TestOwnSteeringLoss: a program that steers its own sockets doesn't take the steering away.
func TestOwnSteeringLoss(t *testing.T) {
	for _, option := range []string{"steer", "steer later"} {
		t.Run(option, func(t *testing.T) {
			reached(t, func(t *testing.T, s *service) {
				addr := free(t, "tcp", "127.0.0.1")
				s.goProgram(programConfig{Kind: "polite", Listen: []string{addr}, Sockets: 2, Option: option})
				s.loss(addr, false)
			})
		})
	}
}

// TestManySocketsLoss: a program with a socket for each of a large machine's CPUs is handed over as well: its group has more
// places than one page of locator packets tells apart.
func TestManySocketsLoss(t *testing.T) {
	reached(t, func(t *testing.T, s *service) {
		addr := free(t, "tcp", "127.0.0.1")
		s.goProgram(programConfig{Kind: "polite", Listen: []string{addr}, Sockets: 128})
		s.start()
		s.serving(0)
		n := 3
		if raceDetector {
			n = 1
		}
		a := s.under(addr, func() {
			for range n {
				s.reload()
			}
		})
		noLoss(t, a.close)
		say(t, a.keepAlive)
	})
}

// TestUDPBinds: where the launcher copies no descriptors, a UDP socket is shared when it is bound, however long after it was
// made, and however often.
func TestUDPBinds(t *testing.T) {
	for _, option := range []string{"slow", "twice"} {
		t.Run(option, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			s.c.NoGetfd = true
			addr := free(t, "udp", "127.0.0.1")
			s.goProgram(programConfig{Kind: "udp", Listen: []string{addr}, Option: option})
			s.c.Listen = []string{"udp:" + addr}
			s.start()
			s.serving(0)
			for range 2 {
				s.reload()
			}
			s.noCopies()
		})
	}
}

// TestUDPOutOfReach: where nothing reaches a UDP socket, the port is not shared, and the failure says what would lift it.
func TestUDPOutOfReach(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.c.NoGetfd, s.c.NoTrace, s.c.Start = true, true, 5*time.Second
	addr := free(t, "udp", "127.0.0.1")
	s.goProgram(programConfig{Kind: "udp", Listen: []string{addr}})
	s.c.Listen = []string{"udp:" + addr}
	if code := s.code(s.start()); code != launcher.ExitOwnFailure {
		t.Errorf("exit code %d", code)
	}
	s.said(launcher.ErrNotLent.Error())
}

// TestDeviceFailures: a port on one device can't be handed over. That is said at the start, and a new
// version that wants one changes nothing.
func TestDeviceFailures(t *testing.T) {
	reached(t, func(t *testing.T, s *service) {
		addr := free(t, "tcp", "0.0.0.0")
		c := programConfig{Kind: "polite", Listen: []string{addr}, Option: "device"}
		s.goProgram(c)
		if code := s.code(s.start()); code != launcher.ExitOwnFailure {
			t.Errorf("exit code %d", code)
		}
		s.said(reuse.ErrDevice.Error())
		if left := s.left(); len(left) > 0 {
			t.Errorf("processes %v are left", left)
		}

		c.Option = ""
		s.next(c)
		s.start()
		s.serving(0)
		c.Option = "device"
		s.next(c)
		addr = local(t, addr)
		a := s.under(addr, func() {
			if reason := s.mustFail(control.ReloadRequest{}); !strings.Contains(reason, "on device lo") {
				t.Errorf("reason %q", reason)
			}
		})
		noLoss(t, a.close)
		noLoss(t, a.keepAlive)
	})
}
