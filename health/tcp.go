package health

import (
	"context"
	"errors"
	"fmt"
)

// tcpProbe connects and closes. Connected is healthy: that somebody accepts the
// connection, or answers on it, is not looked at, for the kernel completes
// connections on its own. UDP addresses have nothing to connect to and are
// passed over, so a service with UDP alone is healthy as soon as it is asked. So
// is one that nobody can reach.
type tcpProbe struct {
	address string // empty: the service's addresses
}

func (p tcpProbe) check(ctx context.Context, t Target) error {
	addresses := t.Addresses
	if p.address != "" {
		addresses = []Address{{"tcp", p.address}}
	} else if len(addresses)+len(t.Unreachable) == 0 {
		return errors.New("the service has no address yet")
	}
	for _, a := range addresses {
		if a.Network == "udp" {
			continue
		}
		conn, err := t.dial(ctx, a.Network, a.Addr)
		if err != nil {
			return fmt.Errorf("connect to %s: %w", a.Addr, err)
		}
		conn.Close()
	}
	return nil
}

// notifyProbe is healthy once the generation has said READY=1.
type notifyProbe struct{}

func (notifyProbe) check(_ context.Context, t Target) error {
	if t.Ready == nil {
		return errors.New("nobody listens for READY=1")
	}
	select {
	case <-t.Ready:
		return nil
	default:
		return errors.New("READY=1 has not come yet")
	}
}

// noProbe is always healthy.
type noProbe struct{}

func (noProbe) check(context.Context, Target) error { return nil }
