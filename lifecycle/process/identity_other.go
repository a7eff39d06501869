//go:build !linux

package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// here returns what tells one boot from another where the system has a name for it
// (darwin: kern.bootsessionuuid, FreeBSD 14: kern.boot_id). It may be empty: start
// times are absolute here, so another boot shows in them.
func here() (boot string, namespace uint64, err error) {
	for _, name := range []string{"kern.bootsessionuuid", "kern.boot_id"} {
		if s, err := unix.Sysctl(name); err == nil {
			return strings.TrimSpace(s), 0, nil
		}
	}
	return "", 0, nil
}

// ps asks ps(1), which both systems have, about one process.
func ps(pid int, format string) (string, error) {
	cmd := exec.Command("ps", "-o", format, "-p", strconv.Itoa(pid))
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return "", os.ErrProcessDone
	}
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(out)), nil
}

func inspect(pid int) (start uint64, running bool, err error) {
	if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
		return 0, false, os.ErrProcessDone
	}
	state, err := ps(pid, "state=")
	if err != nil {
		return 0, false, err
	}
	lstart, err := ps(pid, "lstart=")
	if err != nil {
		return 0, false, err
	}
	t, err := time.Parse(time.ANSIC, strings.Join(strings.Fields(lstart), " "))
	if err != nil {
		return 0, false, fmt.Errorf("parse the start time of ps: %w", err)
	}
	return uint64(t.Unix()), !strings.HasPrefix(state, "Z"), nil
}

// Children lists the children on Linux; here it is an error.
func Children(pid int) ([]int, error) {
	return nil, fmt.Errorf("list the children of process %d: %w: it needs Linux's /proc", pid, errors.ErrUnsupported)
}

// All lists the processes that can be seen on Linux.
func All() []int { return nil }

// Environment is that of a process when it was started on Linux.
func Environment(int) []string { return nil }

// Tree lists the process and all its descendants on Linux; here it is an error.
func Tree(pid int) ([]int, error) {
	return nil, fmt.Errorf("list the descendants of process %d: %w: it needs Linux's /proc", pid, errors.ErrUnsupported)
}

// Command returns the command line of a process for people to read; it is empty when
// there is no such process.
func Command(pid int) string {
	s, err := ps(pid, "command=")
	if err != nil {
		return ""
	}
	return Printable(s)
}
