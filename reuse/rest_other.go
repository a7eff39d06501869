//go:build !linux

package reuse

import (
	"errors"
	"time"
)

func endResting(int, time.Duration) (bool, error) { return false, errors.ErrUnsupported }
