package launcher

import (
	"context"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"overlap/health"
)

// relay is a private way to the starting generation, for the commands of exec probes: a
// listener on the loopback that connects to it and no other, for as long as it is checked.
type relay struct {
	ln    net.Listener
	to    health.Address
	dial  health.DialFunc
	conns sync.WaitGroup
	ctx   context.Context
	end   context.CancelFunc
}

// newRelay returns nil where no probe needs one.
func newRelay(g *generation, addresses []health.Address) (*relay, error) {
	exec := slices.ContainsFunc(g.req.set.probes, func(s health.Spec) bool { return s.Kind() == health.KindExec })
	i := slices.IndexFunc(addresses, func(a health.Address) bool { return a.Network == "tcp" })
	if !exec || i < 0 {
		return nil, nil
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &relay{ln: ln, to: addresses[i], dial: g.owner.Dial}
	r.ctx, r.end = context.WithCancel(context.Background())
	r.conns.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			r.conns.Go(func() { r.join(c) })
		}
	})
	return r, nil
}

func (r *relay) join(c net.Conn) {
	defer c.Close()
	ctx, cancel := context.WithTimeout(r.ctx, 5*time.Second)
	defer cancel()
	to, err := r.dial(ctx, r.to.Network, r.to.Addr)
	if err != nil {
		return
	}
	defer to.Close()
	stop := context.AfterFunc(r.ctx, func() { c.Close(); to.Close() })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(to, c)
		if t, ok := to.(interface{ CloseWrite() error }); ok {
			t.CloseWrite()
		}
	}()
	io.Copy(c, to)
	c.Close()
	<-done
}

// env tells the command where it is.
func (r *relay) env() []string {
	if r == nil {
		return nil
	}
	return []string{"OVERLAP_ADDRESS=" + r.ln.Addr().String()}
}

func (r *relay) close() {
	if r == nil {
		return
	}
	r.ln.Close()
	r.end()
	r.conns.Wait()
}
