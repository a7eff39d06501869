// Package launcher is `overlap run`: it starts any program as a generation of a service, and
// stays while generations come and go.
//
// The invariant: the program is unmodified and knows nothing of it, and its clients get what
// the library's get. Its sockets share their port because the launcher sees each bind(2) before
// it happens (package intercept); they are gated until the health check has passed, through the
// public address; a placeholder of the launcher's is in each group before the program's first
// listen. A program is stopped only when nothing is left at its sockets, and its connections
// had time to end.
//
// One launcher has one service, and at most two programs of it that live: the one that serves,
// and the one that starts or the one that drains. The two talk to each other over the control
// socket like owners in two processes would (package owner), so it makes no difference whether
// the next generation is started by a reload or by hand.
//
// One that must not exit (PID 1, a service manager's main process) is not taken over from by a
// second start: that one gives it its command, environment, directory and those of its [Settings]
// that were given, which hold from then on, and ends with the outcome.
//
// It is no init system: it restarts what crashes, within bounds, so that clients wait instead of
// being refused, and it reaps orphans, since it may be PID 1.
package launcher
