package reuse

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"overlap/reuse/sockdiag"
)

// ErrNoProof means that the kernel, the platform or a sandbox does not tell what
// listeners still hold. The caller can only wait a fixed time instead, and should
// say so.
var ErrNoProof = errors.New("what listeners still hold cannot be seen")

const (
	// A process that connects to a unix socket can lose the CPU between finding the
	// listener and joining its queue, which a handshake in the kernel cannot.
	backlogSettleLocal = 20 * time.Millisecond

	// A dump can miss a socket while others come and go, so absence counts only
	// when it is seen several times, with so much time between.
	backlogConfirmations = 3
	backlogConfirmEvery  = time.Millisecond

	// So many half-open connections fit in one answer of the kernel, by far.
	backlogOneAnswer = 16

	backlogPollMin = time.Millisecond
	backlogPollMax = 20 * time.Millisecond

	// For so long only the listeners' references are read before the half-open connections are
	// listed too, and so much time at most passes between two lists: each costs milliseconds
	// of a CPU, and a connection can stay half-open for a minute.
	backlogListAfter = 250 * time.Millisecond
	backlogListMax   = time.Second
)

// Queue tells what waits in one listener to be accepted or read.
//
// Len returns how many connections wait in a stream listener's accept queue, or
// for a datagram socket how much memory (bytes) unread datagrams take, empty ones
// included; 0 means none. known is false when the listener does not exist any
// more, so there is nothing to wait for. An error wraps [ErrNoProof].
//
// The queues of this package are safe for concurrent use.
type Queue interface {
	Len() (n int, known bool, err error)
}

// InodeQueue returns the queue of any process's listener, by sock_diag. proto is
// "tcp", "udp" (or with 4 or 6 behind it) or "unix", which has no port. A dump can
// miss a listener while others come and go: only one that is absent several
// times, a millisecond apart, is taken to be gone.
func InodeQueue(proto string, port uint16, inode uint64) Queue {
	return inodeQueue{proto: proto, port: port, inode: inode}
}

type inodeQueue struct {
	proto string
	port  uint16
	inode uint64
}

func (q inodeQueue) Len() (int, bool, error) {
	diag, err := sockdiag.Open()
	if err != nil {
		return 0, false, noProof(err)
	}
	defer diag.Close()
	if q.proto == "unix" {
		return unixQueueLen(diag, q.inode)
	}
	list := diag.Listeners
	switch strings.TrimRight(q.proto, "46") {
	case "tcp":
	case "udp":
		list = diag.Datagrams
	default:
		return 0, false, noProof(fmt.Errorf("read a queue: unknown protocol %q", q.proto))
	}
	return q.find(list)
}

// find looks for the inode in several lists before it counts as gone.
func (q inodeQueue) find(list func(port uint16, families ...uint8) ([]sockdiag.Socket, error)) (int, bool, error) {
	for try := range 1 + backlogConfirmations {
		if try > 0 {
			time.Sleep(backlogConfirmEvery)
		}
		found, err := list(q.port, q.families()...)
		if err != nil {
			return 0, false, noProof(err)
		}
		for _, s := range found {
			if s.Inode == q.inode {
				return int(s.RQueue), true, nil
			}
		}
	}
	return 0, false, nil
}

// families are those that the socket can be of.
func (q inodeQueue) families() []uint8 {
	switch {
	case strings.HasSuffix(q.proto, "4"):
		return []uint8{sockdiag.FamilyIPv4}
	case strings.HasSuffix(q.proto, "6"):
		return []uint8{sockdiag.FamilyIPv6}
	}
	return nil
}

// handshakes reports whether connections of this queue begin half-open.
func (q inodeQueue) handshakes() bool { return strings.HasPrefix(q.proto, "tcp") }

func (q inodeQueue) listener() (inode uint64, families []uint8, err error) {
	if families = q.families(); families == nil {
		families = []uint8{sockdiag.FamilyIPv4, sockdiag.FamilyIPv6}
	}
	return q.inode, families, nil
}

func noProof(err error) error {
	if errors.Is(err, ErrNoProof) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrNoProof, err)
}

// AwaitBacklog returns nil once it is proven that nothing is left in listeners
// that get no new connections any more: call it after the switch. Meanwhile
// somebody must go on accepting.
//
// What was on its way into a listener at the switch, on another CPU, stands in the
// kernel's tables a grace period after the call. The proof, from there on, is either of two. The first is that
// the kernel holds no reference of a listener but the socket's own, and nothing is in
// its queue: each connection has a reference, from its first packet until it is
// accepted, or is in the queue ([sockdiag.References]).
//
// The second takes over where that number can't be read, or stays high as that of an
// MPTCP listener does: take the set of half-open connections of the port; wait until each of them is gone; then
// wait until every queue is empty. The order matters, because a connection leaves
// the first state only for the second. Which listener a half-open connection will
// go to is not said there, so all of the port are waited for; what comes after the
// set was taken belongs to the new listener.
//
// A half-open connection can live 63 s where its client is silent
// (tcp_synack_retries), or as long as TCP_DEFER_ACCEPT says, so ctx should have a
// deadline. SYN cookies need nothing before they are in the queue: the steering
// decides where their connection goes when the last ACK comes.
//
// UDP and unix queues have no handshake; when all are such, or port is 0, only
// the queues are waited for.
//
// The error wraps [ErrNoProof] when the kernel does not tell, else ctx's error,
// and says what was left.
func AwaitBacklog(ctx context.Context, port uint16, queues ...Queue) error {
	a := newBacklogWait(ctx, queues)
	if port == 0 {
		return a.wait(nil, queues)
	}
	return a.wait([]uint16{port}, queues)
}

// AwaitBacklogOf is AwaitBacklog for the sockets of several members at once. The kernel is asked
// once for all of them, and not for connections of a family that none is of.
func AwaitBacklogOf(ctx context.Context, members ...*Member) error {
	var ports []uint16
	var families []uint8
	var queues []Queue
	for _, m := range members {
		addr := m.Address()
		if addr.Network == "tcp" {
			ports = append(ports, addr.AddrPort.Port())
			families = append(families, addr.Family())
		}
		for _, ino := range m.Inodes() {
			queues = append(queues, InodeQueue(addr.socketNetwork(), addr.AddrPort.Port(), ino))
		}
	}
	slices.Sort(families)
	a := newBacklogWait(ctx, queues)
	a.families = slices.Compact(families)
	return a.wait(ports, queues)
}

func newBacklogWait(ctx context.Context, queues []Queue) *backlogWait {
	return &backlogWait{ctx: ctx, open: openHalfOpen, sleep: backlogSleep, references: referencesOf(queues)}
}

// halfOpener is what AwaitBacklog needs of sock_diag.
type halfOpener interface {
	HalfOpen(port uint16, families ...uint8) ([]sockdiag.Socket, error)
	Close() error
}

func openHalfOpen() (halfOpener, error) { return sockdiag.Open() }

// backlogWait is one wait, with what touches the system in its fields.
type backlogWait struct {
	ctx   context.Context
	open  func() (halfOpener, error)
	sleep func(context.Context, time.Duration) error
	// references are the listeners'; nil: not known.
	references *references
	// families are those of the listeners; none are both.
	families []uint8
}

// handshake identifies a half-open connection: address pairs return with a
// client's next attempt, cookies never.
type handshake struct {
	local, remote netip.AddrPort
	cookie        uint64
}

func (a *backlogWait) wait(ports []uint16, queues []Queue) error {
	if err := a.settle(slices.ContainsFunc(queues, func(q Queue) bool { return !hasHandshakes(q) })); err != nil {
		return fmt.Errorf("wait for what listeners hold: %w", err)
	}
	if len(ports) > 0 && (len(queues) == 0 || slices.ContainsFunc(queues, hasHandshakes)) {
		released, err := a.halfOpen(ports)
		if err != nil {
			return fmt.Errorf("wait for half-open connections of port %v: %w", ports, err)
		}
		if released {
			queues = slices.DeleteFunc(slices.Clone(queues), hasHandshakes)
		}
	}
	if err := a.empty(queues); err != nil {
		return fmt.Errorf("wait for what listeners hold: %w", err)
	}
	return nil
}

func (a *backlogWait) settle(local bool) error {
	select {
	case <-grace():
	case <-a.ctx.Done():
		return a.ctx.Err()
	}
	if local {
		return a.sleep(a.ctx, backlogSettleLocal)
	}
	return nil
}

// hasHandshakes reports whether a queue may belong to TCP: one of the caller's own
// making may.
func hasHandshakes(q Queue) bool {
	k, ok := q.(interface{ handshakes() bool })
	return !ok || k.handshakes()
}

// halfOpen waits until the listeners are released, which means that their queues are empty too, or
// takes the set of half-open connections and waits until each is gone.
func (a *backlogWait) halfOpen(ports []uint16) (released bool, err error) {
	if a.references != nil {
		if released, err := a.rest(backlogListAfter); released || err != nil {
			return released, err
		}
	}
	diag, err := a.open()
	if err != nil {
		return false, noProof(err)
	}
	defer diag.Close()

	// The set is what several dumps show together where a single one may miss some.
	absences := map[handshake]int{}
	sure := 1
	for i := 0; i < sure; i++ {
		found, shown, err := a.handshakes(diag, ports)
		if err != nil {
			return false, err
		}
		sure = max(sure, confirmations(shown))
		for h := range found {
			absences[h] = 0
		}
		if len(absences) == 0 && i+1 >= sure {
			return false, nil
		}
		if err := a.sleep(a.ctx, backlogConfirmEvery); err != nil {
			return false, fmt.Errorf("%w with %d left", err, len(absences))
		}
	}
	longest := backlogListMax
	if a.references == nil {
		longest = backlogPollMax
	}
	for pause := backlogPollMin; len(absences) > 0; {
		found, shown, err := a.handshakes(diag, ports)
		if err != nil {
			return false, err
		}
		wait := pause
		sure = max(sure, confirmations(shown))
		if countAbsences(absences, found, sure) {
			wait = backlogConfirmEvery
		}
		if len(absences) == 0 {
			break
		}
		released, err := a.rest(wait)
		if err != nil {
			return false, fmt.Errorf("%w with %d left", err, len(absences))
		}
		if released {
			return true, nil
		}
		pause = min(2*pause, longest)
	}
	return false, nil
}

// rest waits so long, or until the listeners are released.
func (a *backlogWait) rest(d time.Duration) (released bool, err error) {
	for pause := backlogPollMin; ; pause = min(2*pause, backlogPollMax) {
		if a.references != nil {
			released, err := a.references.released()
			if err != nil {
				a.references = nil // there is another proof, and nothing to wait for
				return false, nil
			}
			if released {
				return true, nil
			}
		}
		if a.references == nil {
			pause = d
		}
		if d <= 0 {
			return false, nil
		}
		if err := a.sleep(a.ctx, min(pause, d)); err != nil {
			return false, err
		}
		d -= pause
	}
}

// handshakes are the half-open connections of the ports, and how many connections the kernel's
// answer showed.
func (a *backlogWait) handshakes(diag halfOpener, ports []uint16) (found map[handshake]bool, shown int, err error) {
	var port uint16 // all
	if len(ports) == 1 {
		port = ports[0]
	}
	sockets, err := diag.HalfOpen(port, a.families...)
	if err != nil {
		return nil, 0, noProof(err)
	}
	found = make(map[handshake]bool, len(sockets))
	for _, s := range sockets {
		if slices.Contains(ports, s.Local.Port()) {
			found[handshake{local: s.Local, remote: s.Remote, cookie: s.Cookie}] = true
		}
	}
	return found, len(sockets), nil
}

// confirmations is how many dumps in a row must agree when they show so many connections. The
// kernel walks its table a bucket at a time, with the bucket locked, and 16 entries at a time
// (inet_diag_dump_icsk): a dump that fits in one answer misses nothing; one that goes on in a
// second answer can, where entries of a bucket went meanwhile.
func confirmations(found int) int {
	if found < backlogOneAnswer {
		return 1
	}
	return backlogConfirmations
}

// countAbsences removes what was not seen so many times in a row, and reports
// whether any is on its way there.
func countAbsences(absences map[handshake]int, found map[handshake]bool, sure int) (pending bool) {
	for h, n := range absences {
		switch {
		case found[h]:
			absences[h] = 0
		case n+1 >= sure:
			delete(absences, h)
		default:
			absences[h] = n + 1
			pending = true
		}
	}
	return pending
}

// empty waits until each queue was seen empty once: nothing new can come into it.
func (a *backlogWait) empty(queues []Queue) error {
	for pause := backlogPollMin; ; pause = min(2*pause, backlogPollMax) {
		var left []Queue
		for _, q := range queues {
			n, known, err := q.Len()
			if err != nil {
				return noProof(err)
			}
			if known && n > 0 {
				left = append(left, q)
			}
		}
		if len(left) == 0 {
			return nil
		}
		queues = left
		if err := a.sleep(a.ctx, pause); err != nil {
			return fmt.Errorf("%w with %d queues not empty", err, len(left))
		}
	}
}

func backlogSleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
