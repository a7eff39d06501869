//go:build !linux

package notify

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxDescriptors is how many a message can carry.
const maxDescriptors = 253

var oobSpace = unix.CmsgSpace(4 * maxDescriptors)

// control has nothing to set before bind(2): the mode is set after it, and the
// directory is what keeps others out.
func control(fs.FileMode) func(_, _ string, raw syscall.RawConn) error { return nil }

func credentials(*Message, *unix.SocketControlMessage) {}

// shorten needs Linux's /proc.
func shorten(string) (dir *os.File, address string, err error) {
	return nil, "", fmt.Errorf("a path over %d bytes needs Linux: %w", maxAddress, syscall.ENAMETOOLONG)
}

func shortenFor(_ *os.File, path string) string { return path }
