package launcher

import (
	"slices"

	"golang.org/x/sys/unix"
)

// inGroup are those of the processes that are in a process group.
func inGroup(pids []int, group int) []int {
	return slices.DeleteFunc(slices.Clone(pids), func(pid int) bool {
		of, err := unix.Getpgid(pid)
		return err != nil || of != group
	})
}
