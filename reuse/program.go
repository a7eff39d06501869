package reuse

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/net/bpf"
)

// MaxPlaces is how many sockets of one address can be told apart: eight pages of eight hop limits of 64 DSCP
// values each. It is also the length of the longest array the programs steer.
const MaxPlaces = locatorPages * locatorHops * 64

const (
	// locatorHops is the highest hop limit a locator packet bears. No client is so far
	// away: systems send with 64 or more.
	locatorHops = 8
	// locatorPages is how many values the rest of a locator packet tells apart.
	locatorPages = 8
	// locatorMSS is the TCP maximum segment size of page 0; each page's is one more.
	locatorMSS = 1024
	// probeHops is the hop limit of a probe's packets, the only one that passes the gate.
	probeHops = 255

	// offNet makes a load count from the network header (SKF_NET_OFF, linux/filter.h).
	offNet = 0xfff00000

	etherIPv6 = 0x86dd
)

// locator is the hop limit, the traffic class (DSCP, ECN bits zero) and the page that send a packet to a
// place.
func locator(place int) (hops, class, page int) {
	return 1 + place/64%locatorHops, place % 64 << 2, place / 64 / locatorHops
}

// clause is the beginning of every program: locator packets go where they say, all others
// fall through to the next instruction.
func clause(network string) []bpf.Instruction {
	p := append([]bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtProto},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherIPv6, SkipTrue: 14},
		// IPv4: TTL at 8, TOS at 1.
		bpf.LoadAbsolute{Off: offNet + 8, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: locatorHops, SkipTrue: 27},
		bpf.ALUOpConstant{Op: bpf.ALUOpSub, Val: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftLeft, Val: 6},
		bpf.TAX{},
		bpf.LoadAbsolute{Off: offNet + 1, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 2},
		bpf.ALUOpX{Op: bpf.ALUOpAdd},
	}, addPage(network, 20)...)
	return append(append(p,
		// IPv6: hop limit at 7, the DSCP field in bits 4 to 9.
		bpf.LoadAbsolute{Off: offNet + 7, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: locatorHops, SkipTrue: 13},
		bpf.ALUOpConstant{Op: bpf.ALUOpSub, Val: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftLeft, Val: 6},
		bpf.TAX{},
		bpf.LoadAbsolute{Off: offNet, Size: 2},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 6},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 63},
		bpf.ALUOpX{Op: bpf.ALUOpAdd},
	), addPage(network, 40)...)
}

// addPage ends a locator packet's way with the place that is in A, counted from its page. The page is behind an IP header
// of the given length, which has no options as our own packets have none: what Linux says first in a SYN's options is the maximum
// segment size (tcp_options_write in net/ipv4/tcp_output.c), and a datagram begins with it.
func addPage(network string, header uint32) []bpf.Instruction {
	page, first := header+20+2, uint32(locatorMSS)
	if network == "udp" {
		page, first = header+8, 0
	}
	return []bpf.Instruction{
		bpf.TAX{},
		bpf.LoadAbsolute{Off: offNet + page, Size: 2},
		bpf.ALUOpConstant{Op: bpf.ALUOpSub, Val: first},
		bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: 64 * locatorHops},
		bpf.ALUOpX{Op: bpf.ALUOpAdd},
		bpf.RetA{},
	}
}

// serveProgram gives every new connection to one of the places.
func serveProgram(network string, places []int) []bpf.Instruction {
	return append(clause(network), pick(network, places)...)
}

// probeProgram gives the connection that comes from the given address and port to one of
// targets, and every other to one of the other places.
func probeProgram(network string, from netip.AddrPort, targets, others []int) []bpf.Instruction {
	rest := pick(network, others)
	p := append(clause(network), matchSource(from, len(rest))...)
	p = append(p, rest...)
	return append(p, pick(network, targets)...)
}

// splitProgram gives percent of the new connections to one of targets, and the others to one
// of the other places.
func splitProgram(network string, percent int, targets, others []int) []bpf.Instruction {
	rest := pick(network, others)
	p := append(clause(network), chance(network, 100)...)
	p = append(p, bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: uint32(percent), SkipTrue: 1},
		bpf.Jump{Skip: uint32(len(rest))})
	p = append(p, rest...)
	return append(p, pick(network, targets)...)
}

// matchSource jumps over the next rest instructions for packets from the address and port.
// An IPv6 packet with extension headers is not recognised.
func matchSource(from netip.AddrPort, rest int) []bpf.Instruction {
	port := uint32(from.Port())
	if ip := from.Addr().Unmap(); ip.Is4() {
		return notAt(rest, []bpf.Instruction{
			bpf.LoadExtension{Num: bpf.ExtProto},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x0800},
			bpf.LoadAbsolute{Off: offNet + 12, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: word(ip.AsSlice())},
			bpf.LoadMemShift{Off: offNet}, // the header's length, options included
			bpf.LoadIndirect{Off: offNet, Size: 2},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: port},
		})
	}
	ip := from.Addr().As16()
	m := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtProto},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherIPv6},
	}
	for i := 0; i < 16; i += 4 {
		m = append(m, bpf.LoadAbsolute{Off: uint32(offNet + 8 + i), Size: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: word(ip[i:])})
	}
	return notAt(rest, append(m, bpf.LoadAbsolute{Off: offNet + 40, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: port}))
}

// notAt makes each comparison of m that fails jump behind m, and ends m with a jump over the
// next rest instructions.
func notAt(rest int, m []bpf.Instruction) []bpf.Instruction {
	for i, in := range m {
		if j, ok := in.(bpf.JumpIf); ok {
			j.SkipFalse = uint8(len(m) - i)
			m[i] = j
		}
	}
	return append(m, bpf.Jump{Skip: uint32(rest)})
}

func word(b []byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// pick returns one of the places: a constant for one, by random (TCP) or by flow (UDP, whose
// datagrams of one flow must meet one socket) for several.
func pick(network string, places []int) []bpf.Instruction {
	places = slices.Sorted(slices.Values(places))
	if len(places) == 1 {
		return []bpf.Instruction{bpf.RetConstant{Val: uint32(places[0])}}
	}
	p := chance(network, uint32(len(places)))
	for first := 0; first < len(places); {
		end := first + 1 // of the places that follow each other without a hole
		for end < len(places) && places[end] == places[end-1]+1 {
			end++
		}
		if end < len(places) {
			p = append(p, bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: uint32(end), SkipTrue: 2})
		}
		p = append(p, bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: uint32(places[first] - first)}, bpf.RetA{})
		first = end
	}
	return p
}

// chance loads a number below n: a random one, for UDP one that depends on the flow.
func chance(network string, n uint32) []bpf.Instruction {
	if network != "udp" {
		return []bpf.Instruction{
			bpf.LoadExtension{Num: bpf.ExtRand},
			bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: n},
		}
	}
	mix := []bpf.Instruction{
		bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: 0x9e3779b1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 16},
		bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: n},
	}
	return append([]bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtProto},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherIPv6, SkipTrue: 6},
		bpf.LoadAbsolute{Off: offNet + 12, Size: 4},
		bpf.StoreScratch{Src: bpf.RegA, N: 0},
		bpf.LoadMemShift{Off: offNet},
		bpf.LoadIndirect{Off: offNet, Size: 2},
		bpf.LoadScratch{Dst: bpf.RegX, N: 0},
		bpf.Jump{Skip: 4},
		bpf.LoadAbsolute{Off: offNet + 20, Size: 4},
		bpf.StoreScratch{Src: bpf.RegA, N: 0},
		bpf.LoadScratch{Dst: bpf.RegX, N: 0},
		bpf.LoadAbsolute{Off: offNet + 40, Size: 2},
		bpf.ALUOpX{Op: bpf.ALUOpXor},
	}, mix...)
}

// gateFilter is the socket filter of a UDP socket that lets only datagrams with at least the
// given hop limit through. (A TCP socket has IP_MINTTL and IPV6_MINHOPCOUNT for this.)
func gateFilter(hops uint32) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtProto},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherIPv6, SkipTrue: 2},
		bpf.LoadAbsolute{Off: offNet + 8, Size: 1},
		bpf.Jump{Skip: 1},
		bpf.LoadAbsolute{Off: offNet + 7, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: hops, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: 0x40000},
	}
}

// assemble turns a program into what the kernel takes.
func assemble(p []bpf.Instruction) ([]bpf.RawInstruction, error) {
	raw, err := bpf.Assemble(p)
	if err != nil {
		return nil, fmt.Errorf("assemble steering program: %w", err)
	}
	if len(raw) > 4096 {
		return nil, fmt.Errorf("assemble steering program: %d instructions, the kernel takes 4096", len(raw))
	}
	return raw, nil
}
