// Package control is how a generation's owner is asked and told: HTTP and JSON over a
// unix socket, and between two owners a session, a stream of messages both ways.
//
// The invariants: nobody but the owner's user and root is answered, whatever the mode
// of the socket says. Work that was asked for goes on when who asked goes away. The
// last event of a piece of work has been handed to the kernel before Close returns, so
// that the process may exit right after it. And a session that is whole proves that
// the other owner lives, for the kernel breaks it when either dies.
//
//	GET  /v1/status   Status
//	POST /v1/reload   ReloadRequest → Events, one JSON object a line, the last one final
//	POST /v1/stop     StopRequest → Events, the same
//	POST /v1/session  Upgrade: overlap-session → Messages both ways, one a line
//
// A request that cannot be served is answered with a status of 4xx or 5xx and
// {"error": "…"}.
//
// It decides nothing: what a reload or a stop does is the Backend's, and what a
// session's operations mean is between the owners.
package control
