//go:build !linux

package reuse

import (
	"errors"
	"syscall"

	"overlap/reuse/sockdiag"
)

// FileQueue returns a queue whose length is not known on this platform: Len fails
// with [ErrNoProof].
func FileQueue(c syscall.Conn) Queue { return fileQueue{} }

type fileQueue struct{}

func (fileQueue) Len() (int, bool, error) {
	return 0, false, noProof(errors.ErrUnsupported)
}

func unixQueueLen(_ *sockdiag.Conn, _ uint64) (int, bool, error) {
	return 0, false, noProof(errors.ErrUnsupported)
}
