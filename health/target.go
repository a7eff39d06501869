package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
)

// ErrGone is wrapped by the error of [Gate.Wait] when the starting generation
// died before it was healthy.
var ErrGone = errors.New("the starting generation is gone")

// A DialFunc connects to address. It reaches the generation that is starting
// and no other, returns soon after ctx has ended, and may be called by several
// goroutines at once.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// An Address is one of the service's.
type Address struct {
	Network string // "tcp", "udp" or "unix"
	Addr    string // "host:port", or a path for unix; dialable as it is given
}

// A Target is the generation to probe. Each kind of probe needs its own fields;
// the others may be left out.
type Target struct {
	// Dial makes every connection of every probe, also those to an address
	// that is none of the service's: the dialer decides. Nil: a net.Dialer.
	Dial DialFunc
	// Addresses are the service's, in order. "/path" goes to the first TCP
	// one (to the first unix one where there is none), "tcp" to each TCP and
	// unix one.
	Addresses []Address
	// Unreachable are further ones, where nobody can connect: no probe goes there.
	Unreachable []Address

	// Env is the whole environment of an exec probe's command; empty means
	// that it has none. The command's name is looked up in this process's PATH.
	Env []string
	// Dir is the directory of an exec probe's command. Empty: this process's.
	Dir string
	// Start starts an exec probe's command, on the goroutine it is called on,
	// and returns what waits for it. A process that reaps its orphans hands
	// one in that keeps the command from its reaper. Nil: Start and Wait of
	// exec.Cmd.
	Start func(*exec.Cmd) (wait func() error, err error)

	// Ready is closed when READY=1 came, for notify probes.
	Ready <-chan struct{}

	// Gone is closed when the starting generation has died. It ends the gate
	// at once, also during a probe. Nil: not known.
	Gone <-chan struct{}
	// Alive returns nil while the starting generation lives, else what became
	// of it. The gate asks it every few milliseconds, from one goroutine, and
	// when Gone was closed. Nil: not known.
	Alive func() error
}

// dial connects by Dial, or directly.
func (t Target) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if t.Dial == nil {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	return t.Dial(ctx, network, address)
}

// first returns the address that "/path" goes to.
func (t Target) first() (Address, error) {
	for _, network := range []string{"tcp", "unix"} {
		for _, a := range t.Addresses {
			if a.Network == network {
				return a, nil
			}
		}
	}
	return Address{}, errors.New("the service has no TCP address to send the request to")
}

// gone returns an error that wraps ErrGone when the generation is known to be
// dead.
func (t Target) gone() error {
	select {
	case <-t.Gone:
		if t.Alive != nil {
			if err := t.Alive(); err != nil {
				return fmt.Errorf("%w: %w", ErrGone, err)
			}
		}
		return ErrGone
	default:
	}
	if t.Alive != nil {
		if err := t.Alive(); err != nil {
			return fmt.Errorf("%w: %w", ErrGone, err)
		}
	}
	return nil
}
