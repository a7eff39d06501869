// Package state keeps what generations say about themselves on disk, and the locks
// that say who lives.
//
// The invariants: a lock tells the truth and a file only describes it: a generation's
// owner lives exactly as long as its N.lock is held, whatever N.json says. A record is
// whole, either the old or the new one, at every moment, also when the disk is full or
// the writer is killed. And nothing counts that another user could have put there:
// directories and files are opened without following links and checked on the opened
// descriptor.
//
// Below the state directory, a service has a directory of its name:
//
//	handover.lock  held (flock) during a handover
//	N.lock         held (flock) by generation N's owner alone
//	N.json         generation N's record
//	N.sock         generation N's control socket (package control)
//	N.notify       the NOTIFY_SOCKET of N's program, where it is launched
//	N.launcher     where N's launcher says that it is the program's (package control)
//
// Root's directories let other users through, and list nothing to them: the sockets of N's program are
// for whatever user that has become, and the rest is 0600.
//
// The directory is locked itself (flock, shared) by each owner, so that systemd-tmpfiles
// leaves its files alone.
//
// It is not the judge of who serves: that takes the record, the lock, and the kernel's
// list of listeners together, and is package lifecycle's work.
package state
