//go:build !linux

package launcher

import (
	"context"
	"errors"

	"overlap/lifecycle/state"
)

var errPlatform = errors.New("overlap run needs Linux")

// Run returns an error: the launcher needs Linux.
func Run(context.Context, Options) error { return &ExitError{ExitOwnFailure, errPlatform} }

// StopOrphan does nothing: there are no launched programs here.
func StopOrphan(context.Context, state.Record, int) error { return nil }

// Main does nothing.
func Main() {}
