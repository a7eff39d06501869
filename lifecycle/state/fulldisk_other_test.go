//go:build !linux

package state

import "errors"

// fullDisk needs a mount namespace, which only Linux has; no test asks for it here.
func fullDisk(string) error { return errors.ErrUnsupported }
