// Package owner speaks for one generation of a service: the handover, seen from both sides.
//
// The invariant: exactly one healthy generation that exists gets the new connections, whichever
// process dies at whatever step. What is true is what the kernel holds: the handover lock, the
// lock of each generation's owner, the sockets, and the session between two owners, which
// breaks when either of them dies.
//
// The life of an owner N that follows on an owner O:
//
//	Enter     N takes the handover lock, finds O, and opens a session with it
//	Member    for each address: strangers are refused, O reserves places, N's sockets join
//	Settle    O makes room; N's sockets get places that nobody can move
//	Check     N is probed through the public address
//	Switch    N gets the new connections and tells O; the lock is free again
//	…         N serves, until it is O
//	Drain     O waits until nothing is left at its sockets, lets go of them, and tells N
//
// If the session breaks before the switch, O serves on. If it breaks after it because N died,
// and O has not let go yet, O takes the connections back.
//
// What a generation runs, servers of this process or a program, is its [Body]. The package
// starts nothing and kills nothing by itself.
package owner
