package launcher

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"overlap/reuse"
	"overlap/reuse/sockdiag"
)

// borrow calls f with a copy of a socket that one of the processes has.
func borrow(pids []int, ino uint64, f func(fd int) error) error {
	for _, pid := range pids {
		held, herr := sockdiag.Descriptors(pid)
		if herr != nil {
			continue // it ended
		}
		i := slices.IndexFunc(held, func(d sockdiag.Descriptor) bool { return d.Inode == ino })
		if i < 0 {
			continue
		}
		if there, err := borrowFrom(pid, held[i], f); there {
			return err
		}
	}
	return fmt.Errorf("socket %d: %w", ino, reuse.ErrUnreachable)
}

// borrowFrom calls f with a copy of the descriptor, unless the process, or the socket there, has gone.
func borrowFrom(pid int, d sockdiag.Descriptor, f func(fd int) error) (there bool, err error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false, nil
	}
	defer unix.Close(pidfd)
	if lerr := lend(pidfd, d, func(fd int) { err = f(fd) }); lerr != nil {
		return false, nil
	}
	return true, err
}

// lend calls f with a copy of a process's descriptor. The copy is closed after the call: a forgotten
// one keeps a dead queue in the group. The error is pidfd_getfd(2)'s: EBADF also where the number means
// something else by now.
func lend(pidfd int, d sockdiag.Descriptor, f func(fd int)) error {
	fd, err := unix.PidfdGetfd(pidfd, d.FD, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Ino != d.Inode {
		return unix.EBADF
	}
	f(fd)
	return nil
}
