package lifecycle

import (
	"context"
	"net"
	"net/http"
)

// ListenAndServe is http.Server.ListenAndServe for a server whose next version takes over
// without loss. It returns nil after a clean drain. The address is srv.Addr, ":http" where that is
// empty; the service's name is the command's base name.
func ListenAndServe(srv *http.Server) error {
	return listenAndServe(srv, ":http", func(g *Generation, ln net.Listener) { g.HTTP(srv, ln) })
}

// ListenAndServeTLS is ListenAndServe over TLS. The address is srv.Addr, ":https" where that is
// empty. cert and key are files, which may be empty where srv.TLSConfig has certificates.
func ListenAndServeTLS(srv *http.Server, cert, key string) error {
	return listenAndServe(srv, ":https", func(g *Generation, ln net.Listener) { g.HTTPS(srv, cert, key, ln) })
}

func listenAndServe(srv *http.Server, addr string, add func(*Generation, net.Listener)) error {
	g, err := New(Options{})
	if err != nil {
		return err
	}
	if srv.Addr != "" {
		addr = srv.Addr
	}
	ctx := context.Background()
	ln, err := g.Listen(ctx, "tcp", addr)
	if err != nil {
		g.Close()
		return err
	}
	add(g, ln)
	return g.Run(ctx)
}

// Close gives up a generation that does not run: its listeners are closed and the handover
// lock is freed. A running one is not touched; see [Generation.Stop].
func (g *Generation) Close() error {
	g.entering.Lock()
	defer g.entering.Unlock()
	if g.ran {
		return nil
	}
	g.ran, g.closed = true, true
	if g.owner != nil {
		g.owner.Close()
	}
	return nil
}
