// Package lifecycle replaces a running server with its next version, and no client notices.
//
// The invariant: a generation that serves goes on until a newer one has proved itself healthy
// and gets the new connections; what it has begun it finishes. A start that fails, a crash at
// any step, and a second start by hand change nothing for clients.
//
// A server gets this by changing one line:
//
//	err := lifecycle.ListenAndServe(&http.Server{Addr: ":8080", Handler: h})
//
// Start the program a second time, send it SIGHUP, or say `overlap reload`: the new process binds the
// same port with SO_REUSEPORT, is probed through the public address while nobody else reaches it,
// takes over, and the old process drains and exits.
//
// [New] gives more: several addresses and servers, UDP and unix sockets, hooks. What two
// generations say to each other is in package owner, how the kernel is steered in package reuse.
//
// It is no supervisor: for programs that know nothing of it, for crashes, and for PID 1 there
// is `overlap run`.
package lifecycle
