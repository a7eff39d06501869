//go:build !linux

package sockdiag

import (
	"errors"
	"fmt"
	"runtime"
)

// Conn is an open sock_diag socket; there is none on this platform.
type Conn struct{}

var errPlatform = fmt.Errorf("sock_diag is Linux's, this is %s: %w", runtime.GOOS, errors.ErrUnsupported)

// Open fails with an error that wraps [errors.ErrUnsupported], and so does all
// else here.
func Open() (*Conn, error) { return nil, errPlatform }

// Close fails as [Open] does.
func (c *Conn) Close() error { return errPlatform }

// Listeners fails as [Open] does.
func (c *Conn) Listeners(port uint16, families ...uint8) ([]Socket, error) { return nil, errPlatform }

// Bound fails as [Open] does.
func (c *Conn) Bound(families ...uint8) ([]Socket, error) { return nil, errPlatform }

// Datagrams fails as [Open] does.
func (c *Conn) Datagrams(port uint16, families ...uint8) ([]Socket, error) { return nil, errPlatform }

// HalfOpen fails as [Open] does.
func (c *Conn) HalfOpen(port uint16, families ...uint8) ([]Socket, error) { return nil, errPlatform }

// Connections fails as [Open] does.
func (c *Conn) Connections(port uint16, families ...uint8) ([]Socket, error) { return nil, errPlatform }

// UnixListeners fails as [Open] does.
func (c *Conn) UnixListeners() ([]UnixSocket, error) { return nil, errPlatform }

// Unix fails as [Open] does.
func (c *Conn) Unix(inode uint64) (UnixSocket, error) { return UnixSocket{}, errPlatform }

// References fails as [Open] does.
func References(family uint8, inodes []uint64) (map[uint64]Reference, error) { return nil, errPlatform }

// Owners fails as [Open] does.
func Owners(inodes ...uint64) (map[uint64][]Owner, error) { return nil, errPlatform }

// Inodes fails as [Open] does.
func Inodes(pid int) ([]uint64, error) { return nil, errPlatform }

// Descriptors fails as [Open] does.
func Descriptors(pid int) ([]Descriptor, error) { return nil, errPlatform }

// Command returns "".
func Command(pid int) string { return "" }
