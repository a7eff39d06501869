package launcher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
	"overlap/reuse"
	"overlap/reuse/sockdiag"
)

// adoptee describes the server that --adopt names, for the launcher's first generation.
func (l *launcher) adoptee(g *generation) (*state.Record, error) {
	if l.opt.Adopt == 0 || g.req.token != "" {
		return nil, nil
	}
	id, err := process.Of(l.opt.Adopt)
	if err == nil {
		g.adopted = &adoption{server: id, declared: l.set.declared}
		err = g.adopted.take()
	}
	if err != nil {
		return nil, fmt.Errorf("adopt pid %d: %w", l.opt.Adopt, err)
	}
	return g.adopted.r, nil
}

// adoption makes the sockets of a running server share their ports: its TCP ports, and of UDP those that are
// declared or have the number of a TCP port of its. Other UDP ports may be a client's. A new bind to a port needs it
// of every socket there, connected ones too.
type adoption struct {
	server   process.Identity
	declared []reuse.Address
	changed  []adopted // what did not share its port before

	// Of one look:
	diag *sockdiag.Conn
	tree []int           // the server's processes
	mine map[uint64]bool // their sockets
	// r describes the server as a generation without a launcher.
	r *state.Record
}

// adopted is a socket of the server's.
type adopted struct {
	at        reuse.Address
	inode     uint64
	connected bool
}

// take can be called again for what came meanwhile. When it fails nothing has changed for the server's clients.
func (a *adoption) take() (err error) {
	a.mine, a.r = map[uint64]bool{}, &state.Record{State: state.Serving, Launched: true, Owner: a.server, Program: &a.server}
	if a.tree, err = process.Tree(a.server.PID); err != nil {
		return err
	}
	if a.diag, err = sockdiag.Open(); err != nil {
		return err
	}
	defer a.diag.Close()
	for _, p := range a.tree {
		inodes, err := sockdiag.Inodes(p)
		if err != nil {
			return fmt.Errorf("its descriptors can't be read: %w", err)
		}
		for _, ino := range inodes {
			a.mine[ino] = true
		}
	}
	if err := a.listeners(); err != nil {
		return err
	}
	if err := a.datagrams(); err != nil {
		return err
	}
	if len(a.r.Listeners) == 0 {
		return errors.New("it does not listen on any TCP address, or on a UDP port that --listen declares")
	}
	return nil
}

// undo leaves the server as it was, when its ports are shared with nobody any more: else any process of its user
// could join it. SO_REUSEADDR stays.
func (a *adoption) undo() {
	if a == nil {
		return
	}
	tree, err := process.Tree(a.server.PID)
	if err != nil || !a.server.Alive() {
		return
	}
	for _, s := range a.changed {
		borrow(tree, s.inode, func(fd int) error {
			if s.connected {
				return reuse.UnshareConnected(fd)
			}
			return reuse.Unshare(fd, s.at)
		})
	}
	a.changed = nil
}

// share makes a socket share its port.
func (a *adoption) share(s adopted, set func(fd int) error) error {
	return borrow(a.tree, s.inode, func(fd int) error {
		before, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT)
		if err == nil && before == 0 {
			a.changed = append(a.changed, s)
		}
		return set(fd)
	})
}

// shareConnected does it for one that may have gone.
func (a *adoption) shareConnected(at reuse.Address, ino uint64) error {
	err := a.share(adopted{at, ino, true}, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	})
	if errors.Is(err, reuse.ErrUnreachable) {
		return nil
	}
	return err
}

func (a *adoption) listeners() error {
	all, err := a.diag.Listeners(0)
	if err != nil {
		return err
	}
	for _, s := range all {
		if !a.mine[s.Inode] {
			continue
		}
		at := reuse.Address{Network: "tcp", AddrPort: s.Local, V6Only: s.V6Only}
		if err := a.listener(at, s.Inode); err != nil {
			return fmt.Errorf("listener on %s: %w", at, err)
		}
		a.found(at, s.Inode)
	}
	return nil
}

func (a *adoption) datagrams() error {
	all, err := a.diag.Datagrams(0)
	if err != nil {
		return err
	}
	for _, s := range all {
		if !a.mine[s.Inode] || !a.wants(s.Local.Port()) {
			continue
		}
		at := reuse.Address{Network: "udp", AddrPort: s.Local, V6Only: s.V6Only}
		if s.State == sockdiag.StateEstablished { // of one client
			if err := a.shareConnected(at, s.Inode); err != nil {
				return fmt.Errorf("UDP socket on %s: %w", at, err)
			}
			continue
		}
		if err := a.share(adopted{at: at, inode: s.Inode}, func(fd int) error { return reuse.ShareUngated(fd, at) }); err != nil {
			return fmt.Errorf("UDP socket on %s: %w", at, err)
		}
		a.found(at, s.Inode)
	}
	return nil
}

// wants reports whether a UDP port is the service's.
func (a *adoption) wants(port uint16) bool {
	if slices.ContainsFunc(a.declared, func(d reuse.Address) bool { return d.Network == "udp" && d.AddrPort.Port() == port }) {
		return true
	}
	return slices.ContainsFunc(a.r.Listeners, func(l state.Listener) bool {
		at, err := reuse.ExactAddress(l.Network, l.Address, l.V6Only)
		return err == nil && l.Network == "tcp" && at.AddrPort.Port() == port
	})
}

// found adds a socket to the record.
func (a *adoption) found(at reuse.Address, ino uint64) {
	i := slices.IndexFunc(a.r.Listeners, func(l state.Listener) bool { return l.Network == at.Network && l.Address == at.String() })
	if i < 0 {
		a.r.Listeners = append(a.r.Listeners, state.Listener{Network: at.Network, Address: at.String(), V6Only: at.V6Only})
		i = len(a.r.Listeners) - 1
	}
	a.r.Listeners[i].Inodes = append(a.r.Listeners[i].Inodes, ino)
}

// errMPTCP says why a server can't be adopted.
var errMPTCP = errors.New("it is an MPTCP socket, which can't be steered; a Go server listens without it when it is started with GODEBUG=multipathtcp=0")

func (a *adoption) listener(at reuse.Address, ino uint64) error {
	err := a.share(adopted{at: at, inode: ino}, func(fd int) error {
		if proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err == nil && proto == unix.IPPROTO_MPTCP {
			return errMPTCP
		}
		return reuse.ShareOpen(fd, at.Is4())
	})
	if err != nil {
		return err
	}
	// What is accepted while this goes on has the option from its listener.
	conns, err := a.diag.Connections(at.AddrPort.Port())
	if err != nil {
		return err
	}
	for _, c := range conns {
		if c.Inode == 0 {
			continue
		}
		if err := a.shareConnected(at, c.Inode); err != nil {
			return err
		}
	}
	return nil
}

// readyOrphan waits until nothing but the orphan's own sockets keeps a new bind from its ports:
// TIME_WAIT of a server that had no SO_REUSEPORT runs out within a minute.
func (l *launcher) readyOrphan(ctx context.Context, g *generation) error {
	r := g.owner.Orphan()
	if r == nil || g.adopted == nil {
		return nil
	}
	for _, s := range r.Listeners {
		if s.Network != "tcp" {
			continue
		}
		a, err := reuse.ExactAddress(s.Network, s.Address, s.V6Only)
		if err != nil {
			return err
		}
		said := false
		for {
			err := reuse.TryBind(a)
			if err == nil {
				break
			}
			if !errors.Is(err, syscall.EADDRINUSE) {
				return fmt.Errorf("share %s: %w", a, err)
			}
			if !said {
				said = true
				l.log.Info("connections in TIME_WAIT hold the port, waiting for them to run out", "address", a)
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("share %s: connections in TIME_WAIT hold it: %w", a, err)
			case <-time.After(100 * time.Millisecond):
			}
			// Accepted meanwhile, with the option set on its listener after it had come.
			if err := g.adopted.take(); err != nil {
				return err
			}
		}
	}
	return nil
}
