package reuse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"overlap/reuse/sockdiag"
)

const (
	locateRounds = 40
	locateWait   = time.Second
	// moveTime is how long sockets may come and go: a program with many that ends closes one after the other.
	moveTime = 3 * time.Second
)

// errMoved says that sockets came or went while their places were being asked for.
var errMoved = errors.New("sockets came and went meanwhile")

// locate asks the kernel which socket, by inode, stands at which place of the group. Somebody
// else may join or leave meanwhile; then it begins anew.
func locate(a Address) ([]uint64, error) {
	diag, err := sockdiag.Open()
	if err != nil {
		return nil, fmt.Errorf("locate the sockets of %s: %w", a, err)
	}
	defer diag.Close()
	began := time.Now()
	for try := 0; ; try++ {
		places, err := locateOnce(diag, a)
		if err == nil {
			return places, nil
		}
		if try >= 8 && time.Since(began) > moveTime || !errors.Is(err, errMoved) {
			return nil, fmt.Errorf("locate the sockets of %s: %w", a, err)
		}
	}
}

// population is how many sockets the address has: those that who comes joins, and hidden ones, which
// stay in their group and which nobody joins (inet_reuseport_add_sock in net/ipv4/inet_hashtables.c).
func population(a Address) (visible, hidden int, err error) {
	diag, err := sockdiag.Open()
	if err != nil {
		return 0, 0, fmt.Errorf("count the sockets of %s: %w", a, err)
	}
	defer diag.Close()
	there, err := onPort(diag, a)
	if err != nil {
		return 0, 0, err
	}
	m, err := membersAmong(there, a)
	shown := visibleAmong(there, m)
	return len(shown), len(m) - len(shown), err
}

// visibleAmong are those of the members that are not hidden.
func visibleAmong(sockets []sockdiag.Socket, members map[uint64]uint32) (shown []uint64) {
	for _, s := range sockets {
		if _, ok := members[s.Inode]; ok && s.Interface != hiddenIndex {
			shown = append(shown, s.Inode)
		}
	}
	return shown
}

// locateOnce tells the places apart by how many packets each was sent, or, where clients' packets
// are dropped at the same time, one after the other.
func locateOnce(diag *sockdiag.Conn, a Address) ([]uint64, error) {
	there, err := onPort(diag, a)
	if err != nil {
		return nil, err
	}
	before, err := membersAmong(there, a)
	if err != nil {
		return nil, err
	}
	a, err = through(diag, a, there)
	if errors.Is(err, errNoWay) {
		return asTheyCame(a, there, before), nil
	}
	if err != nil {
		return nil, err
	}
	n := len(before)
	if n > MaxPlaces {
		return nil, fmt.Errorf("%d sockets share the address, %d can be told apart", n, MaxPlaces)
	}
	if n <= 1 {
		return keys(before), nil
	}
	visible := visibleAmong(there, before)
	if len(visible) == n {
		places, err := locateByCount(diag, a, before, n, 0)
		if errors.Is(err, errNoise) {
			return locateBesideNoise(diag, a, before, n)
		}
		return places, err
	}
	return locateBesideHidden(diag, a, before, visible)
}

// asTheyCame are the members in the order in which they joined, as far as the kernel's list has it: of TCP's on
// IPv6 the newest is the last (__inet_hash in net/ipv4/inet_hashtables.c), of UDP's the first (udp_lib_get_port in
// net/ipv4/udp.c). It stands for their places where no packet can tell them, nor be steered to a wrong one: any order
// will do in which who comes is behind those that are there.
func asTheyCame(a Address, sockets []sockdiag.Socket, members map[uint64]uint32) []uint64 {
	var all []uint64
	for _, s := range sockets {
		if _, ok := members[s.Inode]; ok {
			all = append(all, s.Inode)
		}
	}
	if a.Network == "udp" {
		slices.Reverse(all)
	}
	return all
}

// locateBesideHidden is for a group beside hidden sockets: of these some may be all that is left of another one. The
// largest number of places is right at which each has a socket: what is sent to a place that does not exist
// comes to several by hash, or to one that has a place.
func locateBesideHidden(diag *sockdiag.Conn, a Address, before map[uint64]uint32, visible []uint64) ([]uint64, error) {
	var failed error
	for _, noisy := range []bool{false, true} {
		for n := len(before); n >= max(len(visible), 1); n-- {
			var places []uint64
			var err error
			if noisy {
				places, err = locateBesideNoise(diag, a, before, n)
			} else {
				places, err = locateByCount(diag, a, before, n, 1) // what has no place drops nothing
			}
			if err == nil && !slices.ContainsFunc(visible, func(ino uint64) bool { return !slices.Contains(places, ino) }) {
				return places, nil
			}
			failed = errors.Join(err, failed)
			now, merr := members(diag, a)
			if merr != nil {
				return nil, merr
			}
			if !slices.Equal(keys(before), keys(now)) {
				return nil, errMoved
			}
			before = now
		}
	}
	if failed == nil {
		failed = errMoved
	}
	return nil, failed
}

// errNoise says that other packets than the locator's were dropped.
var errNoise = errors.New("the sockets drop packets of others")

// digitsFor is how many different numbers of packets one of n places may be sent in one round. With few there are more
// rounds, and less packets in sum: for few places a dump of the sockets, one a round, costs about as much as some
// packets, and for many, little beside them.
func digitsFor(n int) int {
	if n > 50 {
		return 2
	}
	return 5
}

// locateByCount gives each place a number of its own by chance, and sends it so many packets:
// digit by digit where there are many places. What the sockets then dropped must be these numbers,
// and in sum no more than was sent; so no other packet was among them, unless it came in the stead of
// one that was late (loopback's packets wait where the kernel shares them out, as under load or RPS) or
// lost. Therefore the first digit is sent again and must be counted again: what was late is too many there.
// lowest is the lowest number.
func locateByCount(diag *sockdiag.Conn, a Address, before map[uint64]uint32, n, lowest int) ([]uint64, error) {
	numbers := rand.Perm(n)
	for i := range numbers {
		numbers[i] += lowest
	}
	count := func(packets func(number int) int) (map[uint64]int, error) {
		sent := 0
		for place, number := range numbers {
			for range packets(number) {
				if err := sendLocator(a, place); err != nil {
					return nil, err
				}
				sent++
			}
		}
		after, err := awaitDrops(diag, a, before, sent)
		if err != nil {
			return nil, err
		}
		counted := make(map[uint64]int, n)
		for ino, drops := range after {
			counted[ino] = int(drops - before[ino])
		}
		before = after
		return counted, nil
	}
	digits := digitsFor(n)
	dropped := map[uint64]int{}
	for scale := 1; scale < n+lowest; scale *= digits {
		counted, err := count(func(number int) int { return number / scale % digits })
		if err != nil {
			return nil, err
		}
		for ino, packets := range counted {
			dropped[ino] += packets * scale
		}
	}
	at := make(map[int]uint64, n)
	for ino, number := range dropped {
		at[number] = ino
	}
	places := make([]uint64, n)
	for place, number := range numbers {
		if places[place] = at[number]; places[place] == 0 {
			return nil, errNoise
		}
	}
	first := func(number int) int { return number % digits }
	again, err := count(first)
	if err != nil {
		return nil, err
	}
	for ino, packets := range again {
		if packets != first(dropped[ino]) {
			return nil, errNoise
		}
	}
	return places, nil
}

// awaitDrops waits until the sockets have dropped as many packets as were sent.
func awaitDrops(diag *sockdiag.Conn, a Address, before map[uint64]uint32, sent int) (map[uint64]uint32, error) {
	for deadline := time.Now().Add(locateWait); ; time.Sleep(100 * time.Microsecond) {
		after, err := members(diag, a)
		if err != nil {
			return nil, err
		}
		if !slices.Equal(keys(before), keys(after)) {
			return nil, errMoved
		}
		sum := 0
		for ino, drops := range after {
			sum += int(drops - before[ino])
		}
		switch {
		case sum == sent:
			return after, nil
		case sum > sent, time.Now().After(deadline):
			return nil, errNoise
		}
	}
}

// locateBesideNoise is for sockets that drop packets of clients at the same time.
func locateBesideNoise(diag *sockdiag.Conn, a Address, before map[uint64]uint32, n int) ([]uint64, error) {
	if n > manySockets {
		return locateInHalves(diag, a, before, n)
	}
	return locateInTurn(diag, a, before, n)
}

const (
	// manySockets can be asked for in halves faster than one after the other.
	manySockets = 32
	// halves are the rounds of that, a bit each, and sureHalves those after which a result is looked for.
	halves     = 64
	sureHalves = 12
)

// locateInHalves sends a packet to each of a random half of the places, again and again. A socket that has not dropped one in
// some round stands at none of the places that were sent one in it, whatever else is dropped.
func locateInHalves(diag *sockdiag.Conn, a Address, before map[uint64]uint32, n int) ([]uint64, error) {
	inodes := keys(before)
	sent := make([]uint64, n)           // of a place: the rounds in which it was sent a packet
	seen := make([]uint64, len(inodes)) // of a socket: those in which it dropped some
	for round := range halves {
		half := randomHalf(n)
		hit, err := droppedThere(diag, a, before, half, func(hit map[uint64]bool) bool { return len(hit) >= len(half) })
		if err != nil {
			return nil, err
		}
		for _, place := range half {
			sent[place] |= 1 << round
		}
		for i, ino := range inodes {
			if hit[ino] {
				seen[i] |= 1 << round
			}
		}
		if round+1 < sureHalves || round%4 != 3 {
			continue
		}
		at, done, possible := match(sent, seen)
		if !possible {
			return nil, errMoved
		}
		if !done {
			continue
		}
		places := make([]uint64, n)
		for place, i := range at {
			places[place] = inodes[i]
		}
		return places, confirmInHalves(diag, a, before, places)
	}
	return nil, errors.New("the sockets drop too many packets to be told apart")
}

// match finds for each place the socket that dropped something whenever the place was sent something. It is done when each has
// one, and impossible when one has none.
func match(sent, seen []uint64) (at []int, done, possible bool) {
	at = slices.Repeat([]int{-1}, len(sent))
	taken := make([]bool, len(seen))
	for left, changed := len(sent), true; changed; {
		changed = false
		for place, rounds := range sent {
			if at[place] >= 0 {
				continue
			}
			found := -1
			for i, drops := range seen {
				if taken[i] || rounds&^drops != 0 {
					continue
				}
				if found >= 0 {
					found = -2
					break
				}
				found = i
			}
			switch {
			case found == -1:
				return nil, false, false
			case found >= 0:
				at[place], taken[found], changed = found, true, true
				left--
			}
		}
		if left == 0 {
			return at, true, true
		}
	}
	return nil, false, true
}

// confirmInHalves looks a few times more whether each place's packets come to its socket: a client's packet may have
// passed for a late one of the locator.
func confirmInHalves(diag *sockdiag.Conn, a Address, before map[uint64]uint32, places []uint64) error {
	for range sureHalves {
		half := randomHalf(len(places))
		_, err := droppedThere(diag, a, before, half, func(hit map[uint64]bool) bool {
			return !slices.ContainsFunc(half, func(place int) bool { return !hit[places[place]] })
		})
		if err != nil {
			return err
		}
	}
	after, err := members(diag, a)
	if err == nil && !slices.Equal(keys(before), keys(after)) {
		err = errMoved
	}
	return err
}

// randomHalf are some of n places, one at least.
func randomHalf(n int) (half []int) {
	for len(half) == 0 {
		for place := range n {
			if rand.IntN(2) == 0 {
				half = append(half, place)
			}
		}
	}
	return half
}

// droppedThere sends a packet to each of the places and returns the sockets that have dropped some, once that is enough.
func droppedThere(diag *sockdiag.Conn, a Address, all map[uint64]uint32, places []int, enough func(hit map[uint64]bool) bool) (map[uint64]bool, error) {
	before, err := members(diag, a)
	if err != nil {
		return nil, err
	}
	for _, place := range places {
		if err := sendLocator(a, place); err != nil {
			return nil, err
		}
	}
	for deadline := time.Now().Add(locateWait); ; time.Sleep(100 * time.Microsecond) {
		after, err := members(diag, a)
		if err != nil {
			return nil, err
		}
		if !slices.Equal(keys(after), keys(all)) || time.Now().After(deadline) {
			return nil, errMoved
		}
		hit := map[uint64]bool{}
		for ino, drops := range after {
			if drops != before[ino] {
				hit[ino] = true
			}
		}
		if enough(hit) {
			return hit, nil
		}
	}
}

// locateInTurn sends locator packets to one place after the other and watches whose drops are
// counted. A socket may drop packets of clients at the same time, so the candidates for a place
// are all sockets that dropped at least what was sent there, and packets are sent until each
// place has one candidate left. What is sent varies by chance, so that no traffic can keep in step.
func locateInTurn(diag *sockdiag.Conn, a Address, before map[uint64]uint32, n int) ([]uint64, error) {
	candidates := make([]map[uint64]bool, n)
	for range locateRounds {
		for _, place := range rand.Perm(n) {
			if len(candidates[place]) == 1 {
				continue
			}
			burst := 1 + rand.IntN(3)
			hit, err := dropped(diag, a, before, place, burst)
			if err != nil {
				return nil, err
			}
			candidates[place] = intersect(candidates[place], hit)
			if len(candidates[place]) == 0 {
				return nil, errMoved
			}
		}
		if places, done := unique(candidates); done {
			return places, confirm(diag, a, before, places)
		}
	}
	return nil, fmt.Errorf("the sockets drop too many packets to be told apart")
}

// confirm looks once more whether each place's packets come to its socket, since one candidate may have
// been left by a client's packet that came before a late one of the locator.
func confirm(diag *sockdiag.Conn, a Address, before map[uint64]uint32, places []uint64) error {
	for _, place := range rand.Perm(len(places)) {
		hit, err := dropped(diag, a, before, place, 1+rand.IntN(3))
		if err != nil {
			return err
		}
		if !hit[places[place]] {
			return errMoved
		}
	}
	after, err := members(diag, a)
	if err == nil && !slices.Equal(keys(before), keys(after)) {
		err = errMoved
	}
	return err
}

// dropped sends burst locator packets to a place and returns the sockets that dropped so many.
func dropped(diag *sockdiag.Conn, a Address, all map[uint64]uint32, place, burst int) (map[uint64]bool, error) {
	before, err := members(diag, a)
	if err != nil {
		return nil, err
	}
	for range burst {
		if err := sendLocator(a, place); err != nil {
			return nil, err
		}
	}
	for deadline := time.Now().Add(locateWait); ; {
		after, err := members(diag, a)
		if err != nil {
			return nil, err
		}
		if len(after) != len(all) {
			return nil, errMoved
		}
		hit := map[uint64]bool{}
		for ino, drops := range after {
			if drops-before[ino] >= uint32(burst) {
				hit[ino] = true
			}
		}
		if len(hit) > 0 {
			return hit, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("no socket took a packet for place %d of %d: is a steering program of somebody else's attached?", place, len(all))
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// intersect keeps of the candidates those that were hit; nil candidates are all.
func intersect(candidates, hit map[uint64]bool) map[uint64]bool {
	if candidates == nil {
		return hit
	}
	for ino := range candidates {
		if !hit[ino] {
			delete(candidates, ino)
		}
	}
	return candidates
}

// unique takes sockets that are certain from the candidates of other places, and reports
// whether every place has exactly one.
func unique(candidates []map[uint64]bool) ([]uint64, bool) {
	places := make([]uint64, len(candidates))
	taken := map[uint64]int{}
	for changed := true; changed; {
		changed = false
		for place, c := range candidates {
			if places[place] != 0 {
				continue
			}
			for ino := range c {
				if at, ok := taken[ino]; ok && at != place {
					delete(c, ino)
				}
			}
			if len(c) == 1 {
				for ino := range c {
					places[place], taken[ino] = ino, place
				}
				changed = true
			}
		}
	}
	return places, len(taken) == len(candidates)
}

func keys(m map[uint64]uint32) []uint64 {
	k := make([]uint64, 0, len(m))
	for ino := range m {
		k = append(k, ino)
	}
	slices.Sort(k)
	return k
}

// members are the sockets of the address's group, with their drops: hidden TCP listeners are among
// them, hidden UDP sockets not.
func members(diag *sockdiag.Conn, a Address) (map[uint64]uint32, error) {
	there, err := onPort(diag, a)
	if err != nil {
		return nil, err
	}
	return membersAmong(there, a)
}

// onPort are the sockets of the address's port and family.
func onPort(diag *sockdiag.Conn, a Address) ([]sockdiag.Socket, error) {
	if a.Network == "udp" {
		return diag.Datagrams(a.AddrPort.Port(), a.Family())
	}
	return diag.Listeners(a.AddrPort.Port(), a.Family())
}

func membersAmong(sockets []sockdiag.Socket, a Address) (map[uint64]uint32, error) {
	zone, _ := zoneIndex(a.AddrPort.Addr().Zone())
	m := map[uint64]uint32{}
	var group []sockdiag.Socket
	for _, s := range sockets {
		if s.Local.Addr().WithZone("") != a.AddrPort.Addr().WithZone("") || s.Inode == 0 {
			continue
		}
		if zone != 0 && s.Interface != zone && s.Interface != hiddenIndex {
			continue // the same link-local address of another device
		}
		if a.Network == "udp" && s.Remote.Port() != 0 {
			// Connected: lookups prefer it for its peer. Bound to a wildcard it left its group by that (udp_lib_rehash);
			// else it keeps a place there, and the others can't be told.
			continue
		}
		if a.Network == "udp" && s.Interface == hiddenIndex {
			continue // binding it to a device took it out of its group (udp_lib_rehash)
		}
		m[s.Inode] = s.Drops
		group = append(group, s)
	}
	return m, oneDevice(a, group)
}

// sendLocator sends one packet that the locator clause gives to a place.
func sendLocator(a Address, place int) error {
	hops, class, page := locator(place)
	to := a.Local()
	family, level, hopsOption, classOption := unix.AF_INET, unix.IPPROTO_IP, unix.IP_TTL, unix.IP_TOS
	if to.Addr().Is6() {
		family, level, hopsOption, classOption = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_TCLASS
	}
	typ := unix.SOCK_STREAM
	if a.Network == "udp" {
		typ = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, level, hopsOption, hops); err != nil {
		return os.NewSyscallError("setsockopt hop limit", err)
	}
	if err := unix.SetsockoptInt(fd, level, classOption, class); err != nil {
		return os.NewSyscallError("setsockopt traffic class", err)
	}
	sa, err := sockaddr(Address{Network: a.Network, AddrPort: to})
	if err != nil {
		return err
	}
	if a.Network == "udp" {
		return os.NewSyscallError("sendto", unix.Sendto(fd, binary.BigEndian.AppendUint16(nil, uint16(page)), unix.MSG_DONTWAIT, sa))
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, locatorMSS+page); err != nil {
		return os.NewSyscallError("setsockopt TCP_MAXSEG", err)
	}
	if err := unix.Connect(fd, sa); err != nil && err != unix.EINPROGRESS && err != unix.ECONNREFUSED {
		return os.NewSyscallError("connect", err)
	}
	return nil
}

func zoneIndex(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	i, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, fmt.Errorf("zone %s: %w", zone, err)
	}
	return uint32(i.Index), nil
}

// bindProbe prepares a socket before its connect: packets that pass the gate, and a source
// address and port that steering can recognise.
func bindProbe(fd int, a Address) (netip.AddrPort, error) {
	from := Address{Network: a.Network, AddrPort: netip.AddrPortFrom(a.Local().Addr(), 0)}
	level, hops := unix.IPPROTO_IP, unix.IP_TTL
	if !from.Is4() {
		level, hops = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS
	}
	if err := unix.SetsockoptInt(fd, level, hops, probeHops); err != nil {
		return netip.AddrPort{}, os.NewSyscallError("setsockopt hop limit", err)
	}
	sa, err := sockaddr(from)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if err := unix.Bind(fd, sa); err != nil {
		return netip.AddrPort{}, os.NewSyscallError("bind", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockname", err)
	}
	switch n := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(n.Addr), uint16(n.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(n.Addr), uint16(n.Port)), nil
	}
	return netip.AddrPort{}, fmt.Errorf("getsockname: %T", name)
}
