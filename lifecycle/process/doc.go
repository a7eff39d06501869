// Package process says who a process is, in a way that survives the reuse of
// process ids.
//
// The invariant: what this package calls alive, signals or waits for is the very
// process that the Identity was taken from, never a later one that happens to have
// its number. A number alone is believed by nobody: an Identity also carries the
// boot, the pid namespace and the start time, and a Handle holds the process
// itself (a pidfd) where the kernel has such a thing.
//
// It is not a supervisor: it starts nothing, and reaps nothing.
package process
