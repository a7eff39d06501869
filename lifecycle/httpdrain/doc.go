// Package httpdrain ends a running [net/http] server without losing a request.
//
// The invariant: a request of which the server has received a byte is answered,
// and a connection that was accepted is served, until the context given to
// [Drainer.Drain] ends. What is cut then is counted and returned as [ErrCut].
//
// How it differs from [http.Server.Shutdown], which closes idle connections at
// once and drops a request that it has just read:
//
//   - Clients are told first. While draining, each HTTP/1 answer carries
//     "Connection: close", and net/http turns the same header into GOAWAY on
//     HTTP/2. An idle connection gets a grace to send one more request. A request
//     that began before the announcement is answered without it; its connection
//     becomes idle afterwards and gets a grace of its own.
//   - An idle connection is closed by the drain only when its grace is over, net/http
//     holds no byte of a next request, and the kernel has received none that was not
//     read (TCP_INFO's tcpi_bytes_received on Linux, a peek elsewhere). The window
//     that remains is the time between that system call and close(2), plus the
//     network's: a client that sends while the close is on its way to it. HTTP/1
//     has no means against that, but for the grace.
//   - A connection that was accepted and has not sent a byte (http.StateNew) is
//     waited for, a second at least.
//   - Shutdown is called when there is nothing left that it could drop. HTTP/2
//     connections without a stream are ended by it, with GOAWAY; net/http closes
//     them one second later where the client does not.
//   - Waiting is driven by events, not by Shutdown's polling, which backs off to
//     half a second.
//   - Hijacked connections (WebSocket) are told through [Drainer.RegisterOnDrain]
//     or [http.Server.RegisterOnShutdown], counted and waited for.
//
// The package neither listens nor knows when a listener has nothing left in its
// accept queue; the caller closes the listeners when it has the proof.
//
// The price of a served request is two atomic stores and a few loads: there is no
// lock and no map on its path. The price of a connection is one small allocation
// and two short locks.
package httpdrain
