//go:build !linux

package lifecycle_test

import (
	"errors"
	"net"
)

func deferAccept(_ net.Listener, seconds int) error {
	if seconds == 0 {
		return nil
	}
	return errors.New("only Linux has TCP_DEFER_ACCEPT")
}
