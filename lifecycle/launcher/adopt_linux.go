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
	r, err := adopt(l.opt.Adopt, l.set.declared)
	if err != nil {
		return nil, fmt.Errorf("adopt pid %d: %w", l.opt.Adopt, err)
	}
	return r, nil
}

// adoption makes the sockets of a running server share their ports. A new bind to a port needs it of every
// socket there, connected ones too.
type adoption struct {
	diag     *sockdiag.Conn
	tree     []int           // the server's processes
	mine     map[uint64]bool // their sockets
	declared []reuse.Address
	r        *state.Record
}

// adopt describes a running server as a generation without a launcher: its TCP ports, and of UDP those that are
// declared or have the number of a TCP port of its. Other UDP ports may be a client's. When it fails nothing
// has changed for the server's clients.
func adopt(pid int, declared []reuse.Address) (*state.Record, error) {
	id, err := process.Of(pid)
	if err != nil {
		return nil, err
	}
	a := adoption{mine: map[uint64]bool{}, declared: declared,
		r: &state.Record{State: state.Serving, Launched: true, Owner: id, Program: &id}}
	if a.tree, err = process.Tree(pid); err != nil {
		return nil, err
	}
	if a.diag, err = sockdiag.Open(); err != nil {
		return nil, err
	}
	defer a.diag.Close()
	for _, p := range a.tree {
		inodes, err := sockdiag.Inodes(p)
		if err != nil {
			return nil, fmt.Errorf("its descriptors can't be read: %w", err)
		}
		for _, ino := range inodes {
			a.mine[ino] = true
		}
	}
	if err := a.listeners(); err != nil {
		return nil, err
	}
	if err := a.datagrams(); err != nil {
		return nil, err
	}
	if len(a.r.Listeners) == 0 {
		return nil, errors.New("it does not listen on any TCP address, or on a UDP port that --listen declares")
	}
	return a.r, nil
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
			if err := a.share(s.Inode); err != nil {
				return fmt.Errorf("UDP socket on %s: %w", at, err)
			}
			continue
		}
		if err := borrow(a.tree, s.Inode, func(fd int) error { return reuse.ShareUngated(fd, at) }); err != nil {
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
		at, err := reuse.ExactAddress(l.Network, l.Address, false)
		return err == nil && l.Network == "tcp" && at.AddrPort.Port() == port
	})
}

// found adds a socket to the record.
func (a *adoption) found(at reuse.Address, ino uint64) {
	i := slices.IndexFunc(a.r.Listeners, func(l state.Listener) bool { return l.Network == at.Network && l.Address == at.String() })
	if i < 0 {
		a.r.Listeners = append(a.r.Listeners, state.Listener{Network: at.Network, Address: at.String()})
		i = len(a.r.Listeners) - 1
	}
	a.r.Listeners[i].Inodes = append(a.r.Listeners[i].Inodes, ino)
}

// share sets SO_REUSEPORT on a connected socket, if it is still there.
func (a *adoption) share(ino uint64) error {
	err := borrow(a.tree, ino, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	})
	if errors.Is(err, reuse.ErrUnreachable) {
		return nil
	}
	return err
}

// errMPTCP says why a server can't be adopted.
var errMPTCP = errors.New("it is an MPTCP socket, which can't be steered; a Go server listens without it when it is started with GODEBUG=multipathtcp=0")

func (a *adoption) listener(at reuse.Address, ino uint64) error {
	err := borrow(a.tree, ino, func(fd int) error {
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
		if err := a.share(c.Inode); err != nil {
			return err
		}
	}
	return nil
}

// readyOrphan waits until nothing but the orphan's own sockets keeps a new bind from its ports:
// TIME_WAIT of a server that had no SO_REUSEPORT runs out within a minute.
func (l *launcher) readyOrphan(ctx context.Context, g *generation) error {
	r := g.owner.Orphan()
	if r == nil || l.opt.Adopt == 0 {
		return nil
	}
	for _, s := range r.Listeners {
		if s.Network != "tcp" {
			continue
		}
		a, err := reuse.ExactAddress(s.Network, s.Address, false)
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
			if _, err := adopt(l.opt.Adopt, l.set.declared); err != nil {
				return err
			}
		}
	}
	return nil
}
