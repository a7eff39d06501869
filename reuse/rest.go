package reuse

import "time"

// EndResting ends the reading side of an established TCP connection that rests: its last data went
// out, was received by the client, and nothing has moved for the given time since. Whoever serves
// it reads the end of the stream, as when the client closes, and closes it between two requests.
// It reports whether it did. fd may be a copy of another process's descriptor.
//
// A connection whose client never sent anything rests when it is 3 s old: the client may be busy, and would lose its
// first request; or it is a browser's, opened in advance, for which a server may wait much longer.
//
// Between two requests means nothing to the kernel. A connection that rests may be one whose answer
// is sent in pieces with long pauses. One whose next request came within a clock tick (some milliseconds)
// of the answer before, and is worked on for longer than the given time, can't be told from one
// that rests.
func EndResting(fd int, quiet time.Duration) (bool, error) { return endResting(fd, quiet, unusedTime) }

// unusedTime is how old a connection that its client has not used yet is at least when it is ended.
const unusedTime = 3 * time.Second

// OpenConnection reports whether fd is a TCP connection that is established or closing, as
// [sockdiag.Conn.Connections] lists them, and its local port. fd may be a copy of another process's
// descriptor, and anything.
func OpenConnection(fd int) (open bool, port uint16, err error) { return openConnection(fd) }
