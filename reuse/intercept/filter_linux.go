package intercept

import (
	"fmt"
	"runtime"
	"slices"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (linux/seccomp.h). Of an argument only the low
// half counts: all that is looked at is an int in the kernel. The architectures
// below are little-endian, so the low half comes first.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

func argument(n uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: offArgs + 8*n, Size: 4} }

// auditArch is what the kernel calls the architecture this was built for.
func auditArch() (uint32, bool) {
	switch runtime.GOARCH {
	case "amd64":
		return unix.AUDIT_ARCH_X86_64, true
	case "arm64":
		return unix.AUDIT_ARCH_AARCH64, true
	case "riscv64":
		return unix.AUDIT_ARCH_RISCV64, true
	}
	return 0, false
}

// program returns the filter: MPTCP sockets are refused, bind(2) and
// socket(2) of TCP are notified where that is asked for, all else goes on. It costs
// what goes on nothing: the kernel sees beforehand which calls the program lets
// through whatever their arguments, and skips it for them (Linux 5.11).
//
// With bind(2) go listen(2), which tells a server's socket from a client's with a fixed port, and the options
// of setsockopt(2) that decide about the socket's group, as far as they can't be read at the bind: see
// optionFilter.
//
// A bind with an address too short for IPv4 (netlink's has 12 bytes) is not
// notified. x32 calls have a bit in their number that makes them differ from
// the native ones.
func program(arch uint32, bind, socket bool) []bpf.Instruction {
	const (
		allow  = uint32(unix.SECCOMP_RET_ALLOW)
		notify = uint32(unix.SECCOMP_RET_USER_NOTIF)
		refuse = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.EPROTONOSUPPORT)
	)
	ret := func(v uint32) bpf.Instruction { return bpf.RetConstant{Val: v} }
	equal := func(v uint32, skip uint8) bpf.Instruction {
		return bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipTrue: skip}
	}
	p := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offArch, Size: 4},
		equal(arch, 1),
		ret(allow),
		bpf.LoadAbsolute{Off: offNumber, Size: 4},
	}
	if bind {
		p = append(p,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_BIND, SkipFalse: 4},
			argument(2),
			bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: unix.SizeofSockaddrInet4, SkipTrue: 1},
			ret(allow),
			ret(notify),
		)
		options := optionFilter(socket)
		p = append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_SETSOCKOPT, SkipFalse: uint8(len(options))})
		p = append(p, options...)
		p = append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_LISTEN, SkipFalse: 1}, ret(notify))
	}
	p = append(p,
		equal(unix.SYS_SOCKET, 1),
		ret(allow),
		argument(0),
		equal(unix.AF_INET, 2),
		equal(unix.AF_INET6, 1),
		ret(allow),
		argument(2),
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_MPTCP, SkipTrue: 1},
		ret(refuse),
	)
	if socket {
		p = append(p,
			equal(unix.IPPROTO_IP, 2),
			equal(unix.IPPROTO_TCP, 1),
			ret(allow),
			argument(1),
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: sockTypeMask},
			equal(unix.SOCK_STREAM, 1),
			ret(allow),
			ret(notify),
		)
	}
	return append(p, ret(allow))
}

// optionFilter is the part for setsockopt(2). All of its calls run the program now, 22 ns more each here
// (BenchmarkOption).
func optionFilter(made bool) []bpf.Instruction {
	allow := bpf.RetConstant{Val: uint32(unix.SECCOMP_RET_ALLOW)}
	notify := bpf.RetConstant{Val: uint32(unix.SECCOMP_RET_USER_NOTIF)}
	is := func(names []uint32) []bpf.Instruction {
		p := []bpf.Instruction{argument(2)}
		for i, name := range names {
			p = append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: name, SkipTrue: uint8(len(names) - i)})
		}
		return append(p, allow, notify)
	}
	level := func(v uint32, then []bpf.Instruction) []bpf.Instruction {
		return append([]bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipFalse: uint8(len(then))}}, then...)
	}
	p := []bpf.Instruction{argument(1)}
	names := steeringOptions
	if made {
		p = append(p, level(unix.IPPROTO_IPV6, is([]uint32{unix.IPV6_V6ONLY}))...)
		names = slices.Concat(names, deviceOptions, []uint32{unix.SO_REUSEPORT})
	}
	return append(append(p, level(unix.SOL_SOCKET, is(names))...), allow)
}

// sockTypeMask parts a socket's type from its flags (linux/net.h).
const sockTypeMask = 0xf

func assemble(bind, socket bool) ([]unix.SockFilter, error) {
	arch, ok := auditArch()
	if !ok {
		return nil, fmt.Errorf("assemble seccomp filter for %s: %w", runtime.GOARCH, unix.ENOTSUP)
	}
	raw, err := bpf.Assemble(program(arch, bind, socket))
	if err != nil {
		return nil, fmt.Errorf("assemble seccomp filter: %w", err)
	}
	filter := []unix.SockFilter{}
	for _, in := range raw {
		filter = append(filter, unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K})
	}
	return filter, nil
}
