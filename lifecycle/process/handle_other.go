//go:build !linux

package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
)

func openPidfd(int) (*os.File, error) {
	return nil, fmt.Errorf("pidfd_open: %w: it needs Linux", errors.ErrUnsupported)
}

func signalPidfd(*os.File, syscall.Signal) error { return errors.ErrUnsupported }

func waitPidfd(context.Context, *os.File) error { return errors.ErrUnsupported }
