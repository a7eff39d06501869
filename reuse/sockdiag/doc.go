// Package sockdiag reads what the kernel says of its sockets: who listens on a
// port, what waits in a queue, which connections are half-open, and which
// processes hold a socket.
//
// The invariant: an answer is the kernel's own, never a guess. What cannot be
// read is an error or is left out as the function says, so that a caller who
// proves that nothing is left (package reuse does) is never told "nothing" where
// the truth is "unknown". A single answer can still miss a socket: the kernel
// walks its tables in pieces, and one that moves while others come and go can be
// skipped. Whoever concludes something from absence must ask more than once.
//
// It speaks NETLINK_SOCK_DIAG (sock_diag(7)), which needs no privilege, and
// reads /proc for the owners and for the references of listeners. It sees the network namespace of the thread that
// opened the [Conn]. On other platforms than Linux every function returns an
// error that wraps [errors.ErrUnsupported].
//
// It is not a general netlink library, and it changes no socket.
package sockdiag
