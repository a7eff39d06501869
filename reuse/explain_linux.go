package reuse

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// explain adds what to do to errors of listening that have a usual cause.
func explain(err error) error {
	if errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("%w: %w", ErrNoSteering, err)
	}
	return err
}
