// Package cli is the command line of overlap: flags become options, outcomes become words and
// exit codes.
//
// The invariants: an exit code of 0 means that what was asked for has happened, and nothing
// else does. Results go to stdout and everything else to stderr. Every word that a person reads
// there when something went wrong stands in words.go. And the commands learn what runs only from
// locks, control sockets and the kernel, never from a record alone, so that a damaged or outdated
// file makes them say less and not something wrong.
//
// It decides nothing about handovers: that is package lifecycle's work.
package cli
