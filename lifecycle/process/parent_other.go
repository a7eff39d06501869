//go:build !linux

package process

import "strconv"

// Parent returns the parent's pid, 0 where it cannot be told.
func Parent(pid int) int {
	out, err := ps(pid, "ppid=")
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(out)
	if err != nil {
		return 0
	}
	return n
}
