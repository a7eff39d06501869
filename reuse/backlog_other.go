//go:build !linux

package reuse

import (
	"errors"

	"overlap/reuse/sockdiag"
)

func unixQueueLen(_ *sockdiag.Conn, _ uint64) (int, bool, error) {
	return 0, false, noProof(errors.ErrUnsupported)
}
