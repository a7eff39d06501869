package sockdiag

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Owners returns the processes that hold the sockets of these inodes, by walking
// /proc/PID/fd, in order of pid and descriptor. Processes that cannot be read
// (another user's, another PID namespace's) are left out, so a socket without an
// entry has an owner that cannot be seen, or none. It fails only where /proc
// cannot be read at all.
func Owners(inodes ...uint64) (map[uint64][]Owner, error) {
	owners := make(map[uint64][]Owner, len(inodes))
	if len(inodes) == 0 {
		return owners, nil
	}
	names, err := namesIn("/proc")
	if err != nil {
		return nil, fmt.Errorf("find the owners of sockets: %w", err)
	}
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	for _, pid := range pids {
		held, err := Descriptors(pid)
		if err != nil {
			continue // it has ended, or may not be read
		}
		for _, d := range held {
			if slices.Contains(inodes, d.Inode) {
				owners[d.Inode] = append(owners[d.Inode], Owner{PID: pid, Command: Command(pid), FD: d.FD})
			}
		}
	}
	return owners, nil
}

// Inodes returns the inodes of the sockets that a process holds, sorted, each
// once. The error wraps [os.ErrNotExist] when there is no such process and
// [os.ErrPermission] when it may not be read.
func Inodes(pid int) ([]uint64, error) {
	held, err := Descriptors(pid)
	if err != nil {
		return nil, fmt.Errorf("list sockets of process %d: %w", pid, err)
	}
	inodes := make([]uint64, 0, len(held))
	for _, d := range held {
		inodes = append(inodes, d.Inode)
	}
	slices.Sort(inodes)
	return slices.Compact(inodes), nil
}

// Descriptors returns a process's descriptors that are sockets, by number. Its errors are those of
// [Inodes], without the words.
func Descriptors(pid int) ([]Descriptor, error) {
	directory := "/proc/" + strconv.Itoa(pid) + "/fd"
	names, err := namesIn(directory)
	if err != nil {
		return nil, err
	}
	var held []Descriptor
	for _, name := range names {
		target, err := os.Readlink(directory + "/" + name)
		if errors.Is(err, os.ErrPermission) {
			return nil, err // CAP_DAC_OVERRIDE shows the numbers, what they mean takes ptrace access
		}
		if err != nil {
			continue // closed meanwhile
		}
		inode, isSocket := socketInode(target)
		if fd, err := strconv.Atoi(name); err == nil && isSocket {
			held = append(held, Descriptor{FD: fd, Inode: inode})
		}
	}
	slices.SortFunc(held, func(a, b Descriptor) int { return a.FD - b.FD })
	return held, nil
}

func namesIn(directory string) ([]string, error) {
	d, err := os.Open(directory)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// socketInode reads "socket:[123]" (proc(5)).
func socketInode(link string) (uint64, bool) {
	digits, ok := strings.CutPrefix(link, "socket:[")
	if !ok {
		return 0, false
	}
	digits, ok = strings.CutSuffix(digits, "]")
	if !ok {
		return 0, false
	}
	inode, err := strconv.ParseUint(digits, 10, 64)
	return inode, err == nil
}

// Command returns the kernel's name of a process (comm, at most 15 bytes), as ps
// shows it, and "" when there is no such process. A process names itself, so what a
// terminal could act on is replaced by question marks.
func Command(pid int) string {
	name, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return ""
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.TrimSuffix(string(name), "\n"))
}
