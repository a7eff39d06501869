// Command compare puts every way of replacing a running server that we know under the same load
// on the same machine, in one run, and writes a table and a picture of what clients noticed.
//
//	go run ./test/compare -o docs/compare.md
//
// The invariant: all rivals meet the same conditions. The same clients (package bench) make the
// same requests of the same handler, or of a server that answers the same bytes by itself; each is
// reloaded in its documented way; the next reload waits until the last one is over; rounds are
// interleaved, and what is compared is compared within a round. Nothing is counted twice or left
// out: a rival that can't be measured is named with the reason.
//
// As root all of it happens in a network namespace of its own, so that neither other traffic nor
// the machine's packet filters are measured. Every process of a rival lives below a keeper (see
// keeper.go), which ends them all when the comparison ends, however it ends.
package main
