//go:build !linux

package process

import (
	"fmt"
	"strconv"
)

// users returns the real and the saved user id of a process.
func users(pid int) (real, saved int, err error) {
	for field, id := range map[string]*int{"ruid=": &real, "svuid=": &saved} {
		out, err := ps(pid, field)
		if err != nil {
			return 0, 0, err
		}
		if *id, err = strconv.Atoi(out); err != nil {
			return 0, 0, fmt.Errorf("parse the user of ps: %w", err)
		}
	}
	return real, saved, nil
}
