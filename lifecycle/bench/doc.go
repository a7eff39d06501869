// Package bench puts a server under load and says what its clients noticed: it
// is the engine of "overlap bench" and the load of the project's loss tests.
//
// The invariant: each request that was begun ends in exactly one line of the
// account, answered or failed by one [Cause], and nothing is ever sent twice.
// There are no silent retries. What makes a request fail is what a client of the
// user's would see: a refused connection, a reset, an end before the answer was
// whole, no answer in time, a wrong status, a wrong body. Only one thing that
// looks like a failure is none: a keep-alive connection that was seen closed
// before the next request was written to it. RFC 9112 (9.3.1 and 9.5) lets a
// server do that at any time, and no request was lost by it.
//
// A failure of the generator's own, such as running out of source ports, is
// never booked as the server's: Run stops and returns an error that wraps
// [ErrGenerator].
//
// The client speaks HTTP/1.1 over plain connections and does not use net/http's,
// which tries some requests again by itself. It follows no redirect, keeps no
// cookie and asks for no compression.
//
// The package starts no server and no handover. Whoever does tells it the moments
// through [Marks], and gets latencies near the switches beside those of the steady
// state.
package bench
