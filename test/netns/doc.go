// Package netns gives a test binary a network of its own: a namespace with nothing but its loopback.
// Ports can't collide with those of other tests, and no packet filter of the machine's
// sees the traffic: one that tracks connections (Docker's does) drops SYNs once its table is
// full, which a few loss tests fill.
package netns
