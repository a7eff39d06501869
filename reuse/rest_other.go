//go:build !linux

package reuse

import (
	"errors"
	"time"
)

func endResting(int, time.Duration, time.Duration) (bool, error) { return false, errors.ErrUnsupported }

func openConnection(int) (bool, uint16, error) { return false, 0, errors.ErrUnsupported }
