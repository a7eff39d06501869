package launcher

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"overlap/reuse"
)

// borrow calls f with a copy of a socket that one of the processes has. The copy is closed
// after the call: a forgotten one keeps a dead queue in the group.
func borrow(pids []int, ino uint64, f func(fd int) error) error {
	link := fmt.Sprintf("socket:[%d]", ino)
	for _, pid := range pids {
		number, ok := descriptor(pid, link)
		if !ok {
			continue
		}
		pidfd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		fd, err := unix.PidfdGetfd(pidfd, number, 0)
		unix.Close(pidfd)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Ino != ino {
			unix.Close(fd) // the number means something else by now
			continue
		}
		defer unix.Close(fd)
		return f(fd)
	}
	return fmt.Errorf("socket %d: %w", ino, reuse.ErrUnreachable)
}

// descriptor is the number by which a process has what the link in /proc/PID/fd says.
func descriptor(pid int, link string) (int, bool) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	f, err := os.Open(dir)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return 0, false
	}
	for _, name := range names {
		if to, err := os.Readlink(dir + "/" + name); err == nil && to == link {
			n, err := strconv.Atoi(name)
			return n, err == nil
		}
	}
	return 0, false
}
