// Package health answers one question: is the generation that is starting fit
// to get clients?
//
// The invariant: [Gate.Wait] returns nil only when every probe has passed
// against that generation, [Gate.Successes] times in a row, and the generation
// was still alive afterwards. Everything else (a time-out, a death, a refused
// connection, an answer that cannot be understood) is an error that says which
// probe failed, how often it was tried, and what the last try saw. After Wait
// or [Spec.Check] has returned, no goroutine, connection or process of a probe
// is left.
//
// A probe does not know which generation it reaches: two of them share one
// port. Every connection therefore goes through [Target.Dial], and whoever
// hands the dialer in answers for its reaching the starting generation and no
// other.
//
// This is not monitoring. Nothing here watches a generation once it serves, and
// none of it is a liveness check. [Readiness] is for servers that are asked by
// a load balancer whether to send them more.
package health
