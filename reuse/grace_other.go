//go:build !linux

package reuse

import "errors"

func barrier() error { return errors.ErrUnsupported }
