package owner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"overlap/lifecycle/control"
	"overlap/lifecycle/internal/trial"
	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
	"overlap/reuse"
)

// Config says whom an owner speaks for. Name, Root, Body and Log are needed.
type Config struct {
	// Name is the service's; Default is true where nobody chose it.
	Name    string
	Default bool
	// Root is the state directory of all services.
	Root string
	// Command and Directory are for the record.
	Command   []string
	Directory string
	// StopSignal ends the program of a launcher; it is for the record too.
	StopSignal syscall.Signal
	// Launched is true where a launcher owns the generation's process.
	Launched bool
	// Supervised is true where this process must not exit when somebody is started by hand. One
	// that is supervised itself, as in another container, still takes over.
	Supervised bool
	// Token is what the generation that started this one gave it; "" is a start by hand.
	Token string
	// StartTimeout bounds the wait for the handover lock; ReloadTimeout a reload that names none,
	// 0 is the same.
	StartTimeout  time.Duration
	ReloadTimeout time.Duration
	Body          Body
	Log           *slog.Logger
	// Adopt, if not nil, describes a program that is taken over as if its launcher had died.
	Adopt *state.Record
	// UID is the effective user of the generation's sockets; -1 is the process's own.
	UID int
	// Wanted, if not nil, is asked once the handover lock is held: its error ends the start.
	Wanted func() error
	// Borrow calls f with a descriptor of a socket of a program that has no owner any more. Nil:
	// there is no way to it.
	Borrow func(r *state.Record, ino uint64, f func(fd int) error) error
}

// Owner speaks for one generation. It is made by [Enter]; its methods are safe for concurrent
// use, but those that make the steps of a handover are called one after the other.
type Owner struct {
	cfg    Config
	log    *slog.Logger
	dir    *state.Dir
	number int
	own    *state.Lock
	server *control.Server

	mu          sync.Mutex
	lock        *state.Lock // the handover lock, while this owner holds it
	record      state.Record
	addresses   []*address
	claimed     map[uint64]bool // sockets of the program that are no member's yet
	predecessor *predecessor

	// joining is held while an address that is new becomes one of the generation's: two at once would make
	// two members of one group, which undo each other's steering.
	joining sync.Mutex

	// finding is held while the predecessor may become another one.
	finding sync.Mutex
	decided bool // it matters no more: this generation has switched, or is over

	// talk is held while a message of a session is worked on, and by what must not meet one.
	talk      sync.Mutex
	successor *control.Session
	follower  int // the successor's number
	released  bool
	final     bool // no way back from a drain
	handed    bool // a successor has switched and lives
	drains    bool // Drain has begun and can still be taken back
	reserved  bool
	letGo     bool // a hold is over

	superseded chan struct{} // a token: a successor switched
	takenBack  chan struct{} // a token: it died
	stops      chan control.StopRequest
	drained    chan struct{} // closed when the generation is over
	watch      watch
	reloading  sync.Mutex
	closing    sync.Once
	tidying    sync.WaitGroup
	holding    atomic.Bool
	alone      atomic.Bool // the predecessor has let go of its sockets
}

// address is one of the generation's: a member of a group, or a unix path.
type address struct {
	member *reuse.Member
	unix   *reuse.UnixListener
	path   string
	serves []uint64 // inodes of the predecessor's sockets there
	joined bool     // the predecessor serves it too
}

// coming reports whether the address has no socket yet: a program may bind one at any time, and
// listen later.
func (a *address) coming() bool { return a.member != nil && len(a.member.Inodes()) == 0 }

// Number is the generation's number.
func (o *Owner) Number() int { return o.number }

// Dir is the service's state directory.
func (o *Owner) Dir() *state.Dir { return o.dir }

// State is the generation's state.
func (o *Owner) State() state.State {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.record.State
}

// Superseded delivers a token when a newer generation has switched: it is time to [Owner.Drain].
func (o *Owner) Superseded() <-chan struct{} { return o.superseded }

// Stops delivers requests to stop.
func (o *Owner) Stops() <-chan control.StopRequest { return o.stops }

// Members are the generation's groups, in the order of [Owner.Member].
func (o *Owner) Members() []*reuse.Member {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []*reuse.Member
	for _, a := range o.addresses {
		if a.member != nil {
			all = append(all, a.member)
		}
	}
	return all
}

// Enter takes the handover lock of the service and the next number, and introduces the
// generation to the one that serves. On an error nothing is left behind.
func Enter(ctx context.Context, cfg Config) (*Owner, error) {
	if err := state.ValidName(cfg.Name); err != nil {
		return nil, err
	}
	dir, err := state.Open(cfg.Root, cfg.Name)
	if err != nil {
		return nil, err
	}
	o := &Owner{cfg: cfg, log: cfg.Log, dir: dir,
		superseded: make(chan struct{}, 1), takenBack: make(chan struct{}, 1),
		stops: make(chan control.StopRequest, 4), drained: make(chan struct{})}
	if err := o.enter(ctx); err != nil {
		o.Close()
		return nil, err
	}
	return o, nil
}

func (o *Owner) enter(ctx context.Context) error {
	waiting, cancel := context.WithTimeout(ctx, o.cfg.StartTimeout)
	defer cancel()
	lock, err := o.dir.Lock(waiting)
	if err != nil {
		return err
	}
	o.mu.Lock()
	o.lock = lock
	o.mu.Unlock()
	trial.At("locked")
	if o.cfg.Wanted != nil {
		if err := o.cfg.Wanted(); err != nil {
			return err
		}
	}
	if o.number, err = o.tidy(); err != nil {
		return err
	}
	if o.own, err = o.dir.Own(o.number); err != nil {
		return err
	}
	o.log = o.log.With("generation", o.number)
	self, err := process.Self()
	if err != nil {
		return err
	}
	o.record = state.Record{Service: o.cfg.Name, Generation: o.number, State: state.Starting,
		Owner: self, Launched: o.cfg.Launched, Command: o.cfg.Command,
		Directory: o.cfg.Directory, StopSignal: o.cfg.StopSignal, Started: time.Now()}
	if err := o.save(func(*state.Record) {}); err != nil {
		return err
	}
	if err := o.find(ctx); err != nil {
		return err
	}
	trial.At("greeted")
	if reuse.Migrates() {
		o.log.Warn("net.ipv4.tcp_migrate_req is on: the kernel moves connections of a closing listener by hash, also to a generation that was not checked; overlap needs it not, turn it off: sysctl -w net.ipv4.tcp_migrate_req=0")
	}
	if o.server, err = control.Serve(o.dir.SocketPath(o.number), (*backend)(o), o.log); err != nil {
		return err
	}
	return nil
}

// tidy removes what dead generations left and returns the next number. A record that can't be
// read is named and left alone.
func (o *Owner) tidy() (int, error) {
	records, broken := o.dir.Generations()
	for _, err := range broken {
		o.log.Warn("a record can't be read, it is left alone", "error", err)
	}
	newest, err := o.dir.Newest()
	if err != nil {
		return 0, err
	}
	if err := tidy(o.dir, records, o.log); err != nil {
		return 0, err
	}
	return newest + 1, nil
}

func listens(network, addr string, ino uint64) bool {
	a, err := reuse.ExactAddress(network, addr, false)
	if err != nil {
		return false
	}
	there, err := reuse.Sockets(a.Network, a.AddrPort.Port())
	return err == nil && slices.ContainsFunc(there, func(s reuse.Stranger) bool { return s.Inode == ino })
}

// save changes the record and writes it.
func (o *Owner) save(change func(*state.Record)) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	change(&o.record)
	if err := o.dir.Write(o.record); err != nil {
		return fmt.Errorf("write the record of generation %d: %w", o.number, err)
	}
	return nil
}

// saveOrSay is save where going on is better than giving up.
func (o *Owner) saveOrSay(change func(*state.Record)) {
	if err := o.save(change); err != nil {
		o.log.Warn("the record is not up to date", "error", err)
	}
}

// Record changes what the record says of the generation's program.
func (o *Owner) Record(program *process.Identity) {
	o.saveOrSay(func(r *state.Record) { r.Program = program })
}

// unlock frees the handover lock.
func (o *Owner) unlock() {
	o.mu.Lock()
	lock := o.lock
	o.lock = nil
	o.mu.Unlock()
	if lock != nil {
		lock.Unlock()
	}
}

// Close ends the owner: its sockets, its session, its control socket, its locks, its files. A
// generation that was starting fails by it, and the old one serves on.
func (o *Owner) Close() {
	o.closing.Do(func() {
		o.finding.Lock()
		o.decided = true
		o.finding.Unlock()
		o.leave()
		for _, m := range o.Members() {
			m.Release()
		}
		if p := o.before(); p != nil {
			p.close()
		}
		o.talk.Lock()
		successor := o.successor
		o.talk.Unlock()
		close(o.drained)
		if o.server != nil {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			o.server.Close(ctx)
			cancel()
		}
		if successor != nil {
			successor.Close()
		}
		if o.own != nil {
			if err := o.dir.Remove(o.number); err != nil && !errors.Is(err, os.ErrNotExist) {
				o.log.Warn("remove the record", "error", err)
			}
			o.own.Unlock()
		}
		o.unlock()
		o.tidying.Wait()
		o.dir.Close()
	})
}

// leave takes all own sockets out of their groups.
func (o *Owner) leave() {
	o.mu.Lock()
	addresses := slices.Clone(o.addresses)
	o.mu.Unlock()
	var all sync.WaitGroup // each waits for the kernel, all for the same
	for _, a := range addresses {
		if a.member != nil {
			all.Go(a.member.Leave)
		}
		if a.unix != nil {
			all.Go(func() { a.unix.Close() })
		}
	}
	all.Wait()
}
