//go:build linux && !amd64 && !arm64

package intercept

import "golang.org/x/sys/unix"

const callInstruction = ""

// Without it nothing is done to a thread.
func rewind(*unix.PtraceRegs, notification) bool { return false }

func prepare(*unix.PtraceRegs, uintptr, []uintptr) {}

func returned(*unix.PtraceRegs) int64 { return 0 }
