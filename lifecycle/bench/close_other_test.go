//go:build !linux

package bench

import (
	"net"
	"testing"
	"time"
)

// closeAndWait closes the server's side and gives the client's kernel time to know.
func closeAndWait(_ *testing.T, conn net.Conn) {
	conn.Close()
	time.Sleep(50 * time.Millisecond)
}
