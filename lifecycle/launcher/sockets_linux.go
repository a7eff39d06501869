package launcher

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
	"overlap/reuse"
	"overlap/reuse/intercept"
	"overlap/reuse/sockdiag"
)

const (
	// straggler is how long the readiness of a program waits for a socket that is bound and
	// does not listen, and for one more where the predecessor had more.
	straggler = 300 * time.Millisecond
	// shortest is between two looks for a socket that is about to listen.
	shortest = 250 * time.Microsecond
	// giveUp is when such a socket is no longer looked at while the generation serves, unless it listens after all.
	giveUp = 10 * time.Second
	// maxSilent is how many of these are remembered.
	maxSilent = 4096
)

// sockets follow the listeners of a generation's program.
type sockets struct {
	g *generation

	joining sync.Mutex // held while a socket comes, so that its place is not given up

	mu       sync.Mutex
	pending  map[uint64]pending
	silent   map[uint64]pending // those that did not listen for long, and may yet
	came     time.Time          // when a socket began to listen last
	reason   error              // why a bind was refused
	missed   error              // why one could not be seen
	wake     chan struct{}
	stop     chan struct{}
	stopOnce sync.Once
	running  sync.WaitGroup
	many     sync.Once       // says that there are too many
	serving  atomic.Bool     // what comes, comes while the generation serves
	watched  map[int]bool    // processes that have bound a socket
	looking  *time.Timer     // until the next look after something happened
	before   map[uint64]bool // see connections

	awaitsWay bool // see followWay; of the goroutine of follow
}

// pending is a socket that is bound, or about to be, and does not listen yet.
type pending struct {
	address reuse.Address
	uid     int
	// member is nil for one of an address that is new while the generation serves, see [sockets.bind], or that may have
	// been given up since.
	member *reuse.Member
	pid    int
	fd     int // in that process, when it was bound
	since  time.Time
	failed error // why it listens and is not steered
}

func newSockets(g *generation) *sockets {
	return &sockets{g: g, pending: map[uint64]pending{}, silent: map[uint64]pending{}, watched: map[int]bool{}, wake: make(chan struct{}, 1), stop: make(chan struct{})}
}

// bind is called before each bind of the program to a fixed port, while the program waits.
func (s *sockets) bind(b intercept.Bind) error {
	ip := b.Addr.Addr()
	a := reuse.Address{Network: b.Network, AddrPort: b.Addr,
		V6Only: b.Family == unix.AF_INET6 && !ip.Is4In6() && (b.V6Only || !ip.IsUnspecified())}
	if b.Network == "udp" && !s.wantsDatagrams(a) {
		return nil
	}
	if err := reuse.RefuseDevice(a, b.Device); err != nil {
		s.refuse(err)
		return fmt.Errorf("%w: %w", syscall.EOPNOTSUPP, err)
	}
	socket := b.Socket
	if b.Network == "udp" {
		var err error
		if socket, err = b.Borrow(); err != nil {
			// The program gets what it would have without a launcher.
			err = fmt.Errorf("%w: %s: %w", ErrNotLent, a, err)
			s.g.log.Warn("a UDP port of the program's is not shared", "error", err)
			s.because(err)
			return nil
		}
	}
	if s.taken(a, b, socket) {
		return syscall.EADDRINUSE
	}
	if b.Network == "tcp" && s.serving.Load() && s.member(a) == nil {
		return s.open(a, b)
	}
	s.joining.Lock()
	defer s.joining.Unlock()
	m, err := s.join(a, b.UID)
	if err != nil {
		s.refuse(err)
		if ownFault(err) {
			return err
		}
		return fmt.Errorf("%w: %w", syscall.EADDRINUSE, err)
	}
	if socket != nil {
		if err := s.share(a, socket, b.Socket != nil); err != nil {
			return err
		}
	}
	b.Steered()
	// It may listen before it is a member's, while the program binds another that overlaps it.
	s.g.owner.Claim(b.Inode)
	s.mu.Lock()
	s.pending[b.Inode] = pending{address: a, uid: b.UID, member: m, pid: b.PID, fd: b.FD, since: time.Now()}
	s.mu.Unlock()
	s.poke()
	s.watch(b.PID)
	if len(m.Inodes()) > 0 {
		s.expect() // the one before may be closed when this one listens
	}
	return nil
}

// share lets the socket of a bind share its port, behind the gate where it is reached again, to open that: with a TCP socket
// the gate comes when it listens, as a client may have a fixed port too.
func (s *sockets) share(a reuse.Address, socket *os.File, reachedAgain bool) error {
	set := reuse.ShareUngated
	if a.Network == "udp" && reachedAgain {
		set = reuse.Share
	}
	err := withDescriptor(socket, func(fd int) error { return set(fd, a) })
	if err != nil {
		s.refuse(err)
	}
	return err
}

// miss is called with each bind that could not be looked at.
func (s *sockets) miss(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.missed = err
}

// open is bind for a port that the serving generation opens anew. Its clients must not wait for the launcher, and
// there is nobody to keep them from: it joins no group before it listens, and is steered then.
func (s *sockets) open(a reuse.Address, b intercept.Bind) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.g.owner.RefuseStrangers(ctx, a); err != nil {
		s.refuse(err)
		return fmt.Errorf("%w: %w", syscall.EADDRINUSE, err)
	}
	if b.Socket != nil {
		if err := withDescriptor(b.Socket, func(fd int) error { return reuse.ShareUngated(fd, a) }); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.rememberLocked(b.Inode, pending{address: a, uid: b.UID, pid: b.PID, fd: b.FD, since: time.Now()})
	s.mu.Unlock()
	s.watch(b.PID)
	return nil
}

// steer makes a socket that was opened so the generation's, now that it listens.
func (s *sockets) steer(ino uint64, p pending) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s.joining.Lock()
	defer s.joining.Unlock()
	s.g.owner.Claim(ino)
	defer s.g.owner.Disclaim(ino)
	m, err := s.g.owner.MemberOf(ctx, p.address, p.uid)
	if err == nil {
		err = m.ForUser(p.uid)
	}
	if err != nil {
		return err
	}
	control := s.control(ino, p)
	if s.g.owner.State() != state.Serving { // the generation that follows steers, and may have the address
		m.Adopt(ino, control)
		return nil
	}
	err = m.AnchorBehind([]uint64{ino}, func(_ uint64, f func(fd int) error) error {
		if control == nil {
			return reuse.ErrUnreachable
		}
		return control(f)
	})
	if err == nil {
		m.Adopt(ino, control)
	}
	return err
}

// control is how a socket is reached, nil where it can't be.
func (s *sockets) control(ino uint64, p pending) func(func(fd int) error) error {
	if s.g.program.tap.Mode() == intercept.Make {
		return nil
	}
	return s.borrow(p.pid, p.fd, ino)
}

// rememberLocked keeps a socket in mind that may listen some time.
func (s *sockets) rememberLocked(ino uint64, p pending) {
	if len(s.silent) >= maxSilent {
		oldest := slices.MinFunc(slices.Collect(maps.Keys(s.silent)), func(a, b uint64) int {
			return s.silent[a].since.Compare(s.silent[b].since)
		})
		delete(s.silent, oldest)
	}
	s.silent[ino] = p
}

// member is that of an address, or nil.
func (s *sockets) member(a reuse.Address) *reuse.Member {
	all := s.g.owner.Members()
	if i := slices.IndexFunc(all, func(m *reuse.Member) bool { return m.Address() == a }); i >= 0 {
		return all[i]
	}
	return nil
}

// listen is called before a socket of the program listens, while the program waits.
func (s *sockets) listen(l intercept.Listen) error {
	if l.Inode == 0 {
		return s.unseen(l)
	}
	p, ok := s.comes(l.Inode, l.PID, l.FD)
	if !ok || l.Socket == nil || p.member == nil {
		return nil
	}
	return withDescriptor(l.Socket, func(fd int) error { return reuse.Share(fd, p.address) })
}

// comes has a socket that was bound waited for; false where it was not.
func (s *sockets) comes(ino uint64, pid, fd int) (p pending, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok = s.pending[ino]; !ok {
		if p, ok = s.silent[ino]; ok {
			delete(s.silent, ino)
		}
	}
	if ok {
		p.pid, p.fd, p.since = pid, fd, time.Now()
		s.pending[ino] = p
		s.g.owner.Claim(ino)
		s.poke()
	}
	return p, ok
}

// taken reports whether the kernel would refuse a bind because the program itself has the address already: to share its
// port is for the next generation only, unless the program wants it.
// Datagram sockets that reuse their address may have it together (net/ipv4/udp.c, udp_lib_lport_inuse).
func (s *sockets) taken(a reuse.Address, b intercept.Bind, socket *os.File) bool {
	if b.Shares || a.Network == "udp" && reuses(socket) {
		return false
	}
	m := s.member(a)
	return m != nil && len(m.Inodes()) > 0 && s.listens(m) || a.Network == "udp" && s.hasBound(a, b.Inode)
}

// reuses reports whether a socket has SO_REUSEADDR.
func reuses(socket *os.File) (on bool) {
	withDescriptor(socket, func(fd int) error {
		v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
		on = v != 0
		return err
	})
	return on
}

// hasBound reports whether the program has bound another UDP socket to the address, which is not among the generation's yet.
func (s *sockets) hasBound(a reuse.Address, other uint64) bool {
	s.mu.Lock()
	comes := map[uint64]bool{}
	for ino, p := range s.pending {
		if p.address == a && ino != other {
			comes[ino] = true
		}
	}
	s.mu.Unlock()
	if len(comes) == 0 {
		return false
	}
	diag, err := sockdiag.Open()
	if err != nil {
		return false
	}
	defer diag.Close()
	there, err := diag.Datagrams(a.AddrPort.Port())
	return err == nil && slices.ContainsFunc(there, func(d sockdiag.Socket) bool { return comes[d.Inode] })
}

// listens reports whether one of a member's sockets is there still.
func (s *sockets) listens(m *reuse.Member) bool {
	closed, _ := s.closed()
	return slices.ContainsFunc(m.Inodes(), func(ino uint64) bool { return closed[ino] == nil })
}

func withDescriptor(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = do(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// made is called with each socket that is made for the program where its own can't be reached.
// It has no gate then: which of them will listen is not known.
func (s *sockets) made(f *os.File, domain int) error {
	return withDescriptor(f, func(fd int) error { return reuse.ShareOpen(fd, domain == unix.AF_INET) })
}

// join puts a placeholder into the address's group before the program's first listen.
func (s *sockets) join(a reuse.Address, uid int) (*reuse.Member, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	m, err := s.g.owner.MemberOf(ctx, a, uid)
	if err != nil {
		return nil, err
	}
	err = m.ForUser(uid)
	if errors.Is(err, syscall.EADDRINUSE) && !s.listens(m) { // the other user's were closed, which nobody has noticed yet
		for _, ino := range m.Inodes() {
			m.Drop(ino)
		}
		err = m.ForUser(uid)
	}
	if err != nil {
		return nil, err
	}
	return m, s.g.owner.Anchor(m)
}

// wantsDatagrams reports whether a UDP address is declared, or the predecessor's. Others keep
// their meaning of EADDRINUSE.
func (s *sockets) wantsDatagrams(a reuse.Address) bool {
	for _, w := range s.wanted() {
		if w.Network == "udp" && w.AddrPort.Port() == a.AddrPort.Port() {
			return true
		}
	}
	return false
}

// wanted are the addresses that are declared, and the predecessor's.
func (s *sockets) wanted() []reuse.Address {
	return append(slices.Clone(s.g.req.set.declared), s.g.owner.Expected()...)
}

func (s *sockets) refuse(err error) {
	s.g.log.Error("the program may not bind", "error", err)
	s.because(err)
}

// because gives the reason why the program does not become ready, should it not.
func (s *sockets) because(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reason = err
}

func (s *sockets) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// await waits until the program listens on all that makes it ready.
func (s *sockets) await(ctx context.Context) error {
	for pause := shortest; ; pause = min(pause*3/2, 10*time.Millisecond) {
		if err := s.look(); err != nil {
			return err
		}
		missing := s.missing()
		if missing == "" {
			return nil
		}
		select {
		case <-s.g.program.gone():
			return s.endedEarly()
		case <-ctx.Done():
			if err := context.Cause(ctx); !errors.Is(err, context.DeadlineExceeded) {
				return err
			}
			return s.late(missing)
		case <-s.wake:
			pause = shortest
		case <-time.After(pause):
		}
	}
}

func (s *sockets) endedEarly() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reason != nil {
		return refusal(s.reason)
	}
	return fmt.Errorf("%w: %w", errNeverReady, s.g.program.alive())
}

// ownFault reports whether the kernel would have refused the program's bind too: the address is
// not this machine's, or the port not the user's.
func ownFault(err error) bool {
	return errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EACCES)
}

func refusal(reason error) error {
	if ownFault(reason) {
		return fmt.Errorf("%w: %w", errNeverReady, reason)
	}
	return &refusalError{reason}
}

// refusalError is why a program did not become ready that was kept from an address: whatever it
// made of that, the failure is the launcher's.
type refusalError struct{ err error }

func (e *refusalError) Error() string { return e.err.Error() }
func (e *refusalError) Unwrap() error { return e.err }

// late is why a program does not listen in time.
func (s *sockets) late(missing string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reason != nil {
		return refusal(s.reason)
	}
	if errors.Is(s.missed, os.ErrPermission) {
		return &refusalError{fmt.Errorf("%w: whether it listens on %s could not be seen (%w): %w", errNeverReady, missing, s.missed, ErrUnseen)}
	}
	return fmt.Errorf("%w: it does not listen on %s", errNeverReady, missing)
}

// look finds out which pending sockets listen by now, and makes them the generation's.
func (s *sockets) look() error {
	if s.g.req.set.Reuse == ReuseOff {
		if err := s.discover(); err != nil {
			return err
		}
	}
	opened, err := s.lookAtPending()
	for ino, p := range opened {
		if p.failed = s.steer(ino, p); p.failed == nil {
			continue
		}
		s.mu.Lock()
		s.pending[ino] = p // others come and go
		s.mu.Unlock()
	}
	return err
}

// lookAtPending returns those that listen and have no member.
func (s *sockets) lookAtPending() (opened map[uint64]pending, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pending) == 0 {
		return nil, nil
	}
	diag, err := sockdiag.Open()
	if err != nil {
		return nil, err
	}
	defer diag.Close()
	opened = map[uint64]pending{}
	seen := map[reuse.Address][]sockdiag.Socket{}
	for ino, p := range s.pending {
		a := p.address
		there, ok := seen[a]
		if !ok {
			list := diag.Listeners
			if a.Network == "udp" {
				list = diag.Datagrams
			}
			if there, err = list(a.AddrPort.Port()); err != nil {
				return opened, err
			}
			seen[a] = there
		}
		if !slices.ContainsFunc(there, func(d sockdiag.Socket) bool { return d.Inode == ino }) {
			continue
		}
		delete(s.pending, ino)
		if p.member == nil {
			opened[ino] = p
			continue
		}
		p.member.Adopt(ino, s.control(ino, p))
		s.came = time.Now()
		s.g.owner.Disclaim(ino)
	}
	return opened, nil
}

// missing names what the program does not listen on yet, "" is nothing.
func (s *sockets) missing() string {
	have := s.g.owner.Members()
	have = slices.DeleteFunc(have, func(m *reuse.Member) bool { return len(m.Inodes()) == 0 })
	lacks := func(w reuse.Address, satisfies func(a, wanted reuse.Address) bool) bool {
		return !slices.ContainsFunc(have, func(m *reuse.Member) bool { return satisfies(m.Address(), w) })
	}
	// What is declared may be covered by a wildcard, or by one of several addresses within it; what the predecessor has of
	// it, or of all where nothing is, must be there again, since the kernel tells clients apart by it.
	declared := s.g.req.set.declared
	for _, w := range declared {
		if lacks(w, covers) {
			return w.String()
		}
	}
	for _, w := range s.g.owner.Expected() {
		meant := len(declared) == 0 || slices.ContainsFunc(declared, func(d reuse.Address) bool { return covers(w, d) })
		if meant && lacks(w, same) {
			return w.String()
		}
	}
	if len(have) == 0 {
		return "any address"
	}
	for _, m := range have {
		if s.more(m) {
			return m.Address().String()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pending {
		if time.Since(p.since) < straggler {
			return p.address.String()
		}
	}
	return ""
}

// more reports whether a program that opens several sockets for an address seems to be about to open another one: it may
// accept nothing before it has them all.
func (s *sockets) more(m *reuse.Member) bool {
	n, before := len(m.Inodes()), s.g.owner.Served(m)
	s.mu.Lock()
	still := time.Since(s.came)
	s.mu.Unlock()
	if before == 0 && n > 1 {
		return still < straggler/10
	}
	return n < before && still < straggler
}

// covers reports whether listening on a makes what was wanted true: the same port, and the
// address or a wildcard around it.
func covers(a, wanted reuse.Address) bool {
	if a.Network != wanted.Network {
		return false
	}
	_, overlap := reuse.Overlaps(a.AddrPort, wanted.AddrPort, a.V6Only, wanted.V6Only)
	return overlap
}

// same reports whether listening on a is listening on what was wanted.
func same(a, wanted reuse.Address) bool {
	equal, _ := reuse.Overlaps(a.AddrPort, wanted.AddrPort, a.V6Only, wanted.V6Only)
	return a.Network == wanted.Network && equal
}

// mostSockets is how many sockets a program can have at one address: each generation keeps twice as many placeholders, and
// at a handover there are two of them.
const mostSockets = reuse.MaxPlaces / 6

// warnOfMany says early that no next generation may come.
func (s *sockets) warnOfMany() {
	for _, m := range s.g.owner.Members() {
		if n := len(m.Inodes()); n > mostSockets {
			s.many.Do(func() {
				s.g.log.Warn("the program has so many sockets at one address that reloads may fail", "address", m.Address(), "sockets", n, "most", mostSockets)
			})
		}
	}
}

// follow looks after sockets that come while the generation serves, those first that were bound
// before and did not listen in time.
func (s *sockets) follow() {
	s.serving.Store(true)
	s.running.Go(func() {
		s.catchUp()
		for {
			s.followWay()
			select {
			case <-s.wake:
				s.catchUp()
			case <-s.stop:
				return
			}
		}
	})
}

// catchUp waits until the sockets that were bound listen, and lets clients reach them.
func (s *sockets) catchUp() {
	var failed error    // why the steering lags behind the sockets,
	var since time.Time // and since when
	for pause := time.Millisecond; ; pause = min(pause*2, 100*time.Millisecond) {
		before := s.count()
		err := s.look()
		left := s.count()
		if err == nil && (left < before || failed != nil) {
			err = s.follows(true, false)
		}
		if err != nil && failed == nil {
			since = time.Now()
		}
		failed = err
		if failed != nil && time.Since(since) > giveUp {
			s.g.log.Warn("the program's sockets changed, and clients may not reach them", "error", failed)
			failed = nil
		}
		if left == 0 && failed == nil {
			s.warnOfMany()
			s.review()
			return
		}
		select {
		case <-s.stop:
			return
		case <-s.wake:
			pause = time.Millisecond
		case <-time.After(pause):
		}
	}
}

// count is how many sockets are pending; those that have been so for long are given up.
func (s *sockets) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ino, p := range s.pending {
		if time.Since(p.since) > giveUp {
			delete(s.pending, ino)
			s.g.owner.Disclaim(ino)
			if p.failed != nil {
				s.g.log.Warn("a port that the program has opened is not steered", "address", p.address, "error", p.failed)
			}
			p.member = nil // nothing keeps it among the generation's
			s.rememberLocked(ino, p)
		}
	}
	return len(s.pending)
}

// waitFor reports whether one of the sockets has been bound and is waited for.
func (s *sockets) waitFor(inodes []uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(inodes, func(ino uint64) bool { _, ok := s.pending[ino]; return ok })
}

func (s *sockets) close() {
	s.stopOnce.Do(func() { close(s.stop) })
	s.mu.Lock()
	if s.looking != nil {
		s.looking.Stop()
	}
	s.mu.Unlock()
	s.running.Wait()
}

// inodes are those of all sockets of the program's processes.
func (s *sockets) inodes() map[uint64]bool { return heldBy(s.g.program.tree()) }

// borrow returns a function that gets hold of one of the program's sockets for the length of a
// call, with pidfd_getfd(2). Where the process has it, or had it, fd is its descriptor there, else -1.
func (s *sockets) borrow(pid, fd int, ino uint64) func(func(fd int) error) error {
	return func(f func(fd int) error) error {
		// To search the descriptors of a program with many sockets, for each of them, takes the square of that.
		if fd >= 0 {
			if there, err := borrowFrom(pid, sockdiag.Descriptor{FD: fd, Inode: ino}, f); there {
				return err
			}
		}
		err := borrow([]int{pid}, ino, f)
		if errors.Is(err, reuse.ErrUnreachable) {
			// A child may have it now.
			err = borrow(s.g.program.tree(), ino, f)
		}
		if errors.Is(err, reuse.ErrUnreachable) {
			// Or one whose parent has ended before it was found to be the program: it is the launcher's then.
			if all, terr := process.Tree(os.Getpid()); terr == nil {
				err = borrow(all, ino, f)
			}
		}
		return err
	}
}
