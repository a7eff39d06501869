package reuse

import "errors"

// ErrDevice means that a socket is bound to one network device. Such a socket is in a group of its own,
// which placeholders, probes and steering do not reach: the kernel picks it, for packets from that device,
// before any other on the port (compute_score in net/ipv4/inet_hashtables.c).
var ErrDevice = errors.New("a port that is bound to one network device (SO_BINDTODEVICE) can't be handed over: " +
	"let the program listen on the device's address instead (haproxy: bind ADDRESS:PORT without interface)")
