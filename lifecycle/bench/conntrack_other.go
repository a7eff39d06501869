//go:build !linux

package bench

// conntrackDrops is of Linux's connection tracking; elsewhere there is none.
func conntrackDrops() int64 { return 0 }
