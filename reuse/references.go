package reuse

import (
	"maps"

	"overlap/reuse/sockdiag"
)

// references tells of TCP listeners whether anything is left in them, by the references that the
// kernel holds: the socket has one, and each half-open connection has one more until it is accepted
// or gone (reqsk_alloc and reqsk_put in the kernel's include/net/request_sock.h and
// net/ipv4/inet_connection_sock.c, since Linux 4.4). One that a SYN cookie let in was never half-open
// and has none; it is in the queue, whose length stands in the same line. So one line answers for
// one listener, where a dump of half-open connections walks through all connections of the machine.
type references struct {
	// read returns the numbers of the listeners of a family (sockdiag.FamilyIPv4 or FamilyIPv6)
	// that were found.
	read   func(family uint8, inodes []uint64) (map[uint64]sockdiag.Reference, error)
	inodes map[uint8][]uint64
	missed map[uint64]int // in how many readings in a row
}

// listening is a queue that can name its TCP listener, which is of one of the families.
type listening interface {
	listener() (inode uint64, families []uint8, err error)
}

// referencesOf returns nil where not all of the queues with handshakes name their listener, or none is
// there.
func referencesOf(queues []Queue) *references {
	r := references{read: sockdiag.References, inodes: map[uint8][]uint64{}, missed: map[uint64]int{}}
	for _, q := range queues {
		if !hasHandshakes(q) {
			continue
		}
		l, ok := q.(listening)
		if !ok {
			return nil
		}
		inode, families, err := l.listener()
		if err != nil {
			return nil
		}
		for _, f := range families {
			r.inodes[f] = append(r.inodes[f], inode)
		}
		r.missed[inode] = 0
	}
	if len(r.missed) == 0 {
		return nil
	}
	return &r
}

// released reports whether nothing is left in any of the listeners. One that was not found so
// many times in a row as a dump needs is gone.
func (r *references) released() (bool, error) {
	found := map[uint64]sockdiag.Reference{}
	for family, inodes := range r.inodes {
		some, err := r.read(family, inodes)
		if err != nil {
			return false, err
		}
		maps.Copy(found, some)
	}
	released := true
	for inode := range r.missed {
		switch held, ok := found[inode]; {
		case ok:
			r.missed[inode] = 0
			released = released && held == sockdiag.Reference{Count: 1}
		case r.missed[inode] < backlogConfirmations:
			r.missed[inode]++
			released = false
		}
	}
	return released, nil
}
