package reuse

import (
	"errors"
	"os"
	"syscall"

	"overlap/reuse/sockdiag"
)

// unixQueueLen asks for one unix listener by its inode, which needs no dump and
// so misses nothing.
func unixQueueLen(diag *sockdiag.Conn, inode uint64) (int, bool, error) {
	s, err := diag.Unix(inode)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return 0, false, nil
	case err != nil:
		return 0, false, noProof(err)
	}
	return int(s.RQueue), true, nil
}

func backlogControl(c syscall.Conn, do func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = do(int(fd)) }); err != nil {
		return err
	}
	return failed
}
