//go:build !linux

package reuse

import (
	"context"
	"net/netip"

	"golang.org/x/net/bpf"
)

// Without steering a socket is what net makes it; a group's members share by the kernel's own
// rule. The functions that only prepare or clean up do nothing, those that promise a landing
// return ErrNoSteering.

func closeGate(int, Address) error                   { return nil }
func openGate(int, Address) error                    { return nil }
func attach(int, []bpf.Instruction) error            { return ErrNoSteering }
func hide(int) error                                 { return nil }
func inode(int) (uint64, error)                      { return 0, ErrNoSteering }
func newPlaceholder(Address, int) (int, error)       { return -1, ErrNoSteering }
func closeFD(int)                                    {}
func locate(Address) ([]uint64, error)               { return nil, ErrNoSteering }
func reachable(a Address) (Address, error)           { return a, nil }
func population(Address) (int, int, error)           { return 0, 0, ErrNoSteering }
func bindProbe(int, Address) (netip.AddrPort, error) { return netip.AddrPort{}, ErrNoSteering }

// Reachable returns true: nothing is known of it.
func (a Address) Reachable() bool { return true }

// AwaitReachable returns nil.
func AwaitReachable(context.Context, Address) error { return nil }

// Share returns ErrNoSteering.
func Share(int, Address) error { return ErrNoSteering }

// Migrates returns false.
func Migrates() bool { return false }

// ShareOpen returns ErrNoSteering.
func ShareOpen(int, bool) error { return ErrNoSteering }

// ShareUngated returns ErrNoSteering.
func ShareUngated(int, Address) error { return ErrNoSteering }

// Unshare returns ErrNoSteering.
func Unshare(int, Address) error { return ErrNoSteering }

// UnshareConnected returns ErrNoSteering.
func UnshareConnected(int) error { return ErrNoSteering }

// Hide returns ErrNoSteering.
func Hide(int) error { return ErrNoSteering }

// TryBind returns ErrNoSteering.
func TryBind(Address) error { return ErrNoSteering }
