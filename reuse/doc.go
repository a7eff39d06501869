// Package reuse puts several sockets on one port and says which of them clients reach.
//
// The invariant: at every moment, also between two system calls and after a crash of any
// process, the kernel gives a new connection to a socket of the serving generation, or keeps
// it waiting for one. No socket of a generation that is starting, leaving or gone gets one.
//
// Every generation of a service has a [Member] for each address. The members of one address
// form a group in the kernel (SO_REUSEPORT, socket(7)): an array of sockets, numbered in the
// order of listen(2) for TCP and of bind(2) for UDP. When a socket leaves, the last one of the
// array moves into its place. A classic BPF program picks the place for a new connection; a
// place that does not exist falls back to a hash over all members. From this follow the rules:
//
//   - The program names the places of serving sockets only, so whoever joins gets nothing.
//   - A serving socket never moves: its member owns so many sockets and placeholders that the
//     array is always longer than its highest serving place, whoever else leaves. A placeholder
//     is a listening socket that answers nobody.
//   - A starting member's sockets carry the gate until its switch: they drop whatever does not
//     come from the probe. So neither a crash of the old generation nor the hash can send it
//     a client.
//   - Whatever leaves is hidden first and closed a grace period of the kernel later (what makes room: 1 ms).
//     Datagram sockets are hidden only when no answer is owed any more: a hidden socket can't send.
//
// Where a socket stands is not written down anywhere: it is asked of the kernel whenever it
// is needed ([Member.Settle]). Every program begins with a clause for packets that arrive with
// a hop limit of at most 8: hop limit and DSCP field spell the place they go to, every
// socket of ours drops them (IP_MINTTL, see ip(7)), and the kernel counts the drop for the
// socket. No crash can falsify this picture.
//
// Any process of the same user can join a group by itself: that is the nature of SO_REUSEPORT.
// [Listening] tells who is there.
//
// This package is no load balancer and no proxy: it never touches a packet.
package reuse
