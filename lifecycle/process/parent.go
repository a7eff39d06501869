package process

import "os"

// Descends reports whether a process has another one among its ancestors, as far as it can be told:
// one whose parent has ended has the nearest subreaper above it instead (PR_SET_CHILD_SUBREAPER).
func Descends(pid, from int) bool {
	for pid > 0 {
		if pid == os.Getpid() {
			pid = os.Getppid() // needs no /proc
		} else {
			pid = Parent(pid)
		}
		if pid == from {
			return pid > 0
		}
	}
	return false
}
