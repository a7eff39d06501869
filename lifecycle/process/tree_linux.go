package process

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Children returns the processes whose parent is pid, in no order, those that ended and were not
// waited for included. The error wraps os.ErrProcessDone when the process does not exist. The
// list is a snapshot that is not taken in one step, as that of [Tree].
func Children(pid int) ([]int, error) {
	children, err := listChildren(pid)
	if errors.Is(err, errors.ErrUnsupported) {
		var all map[int][]int
		if all, err = parents(); err == nil {
			children = all[pid]
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list the children of process %d: %w", pid, err)
	}
	return children, nil
}

// All are the processes that can be seen.
func All() (pids []int) {
	all, _ := names("/proc")
	for _, name := range all {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Environment is that of a process when it was started, nil where it can't be read.
func Environment(pid int) []string {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return nil
	}
	return strings.Split(string(data), "\x00")
}

// Tree returns the process and all its descendants, parents before children. The
// error wraps os.ErrProcessDone when the process does not exist. The list is a
// snapshot that is not taken in one step: who is born or orphaned meanwhile may be
// missing, and a descendant whose parent has died belongs to the nearest subreaper
// (PR_SET_CHILD_SUBREAPER) above it, or to the namespace's first process.
func Tree(pid int) ([]int, error) {
	tree, err := tree(pid, listChildren)
	if errors.Is(err, errors.ErrUnsupported) {
		tree, err = scanTree(pid)
	}
	if err != nil {
		return nil, fmt.Errorf("list the descendants of process %d: %w", pid, err)
	}
	return tree, nil
}

// scanTree is Tree where the kernel does not list children: all processes say who their parent is.
func scanTree(pid int) ([]int, error) {
	if _, err := readStat(pid); err != nil {
		return nil, err
	}
	all, err := parents()
	if err != nil {
		return nil, err
	}
	return tree(pid, func(pid int) ([]int, error) { return all[pid], nil })
}

func tree(pid int, children func(pid int) ([]int, error)) ([]int, error) {
	tree := []int{pid}
	seen := map[int]bool{pid: true} // a number reused meanwhile must not make a circle
	for i := 0; i < len(tree); i++ {
		of, err := children(tree[i])
		if err != nil && (i == 0 || errors.Is(err, errors.ErrUnsupported)) {
			return nil, err
		}
		for _, child := range of {
			if !seen[child] {
				seen[child] = true
				tree = append(tree, child)
			}
		}
	}
	return tree, nil
}

// parents are the children of all processes by their parent.
func parents() (map[int][]int, error) {
	names, err := names("/proc")
	if err != nil {
		return nil, err
	}
	children := make(map[int][]int)
	for _, name := range names {
		p, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if s, err := readStat(p); err == nil {
			children[s.parent] = append(children[s.parent], p)
		}
	}
	return children, nil
}

// listChildren reads /proc/PID/task/TID/children (proc_pid_task(5)), which costs nothing for the other
// processes of the machine. The error wraps errors.ErrUnsupported where there is no such file, for
// which the kernel needs CONFIG_PROC_CHILDREN. A child can be missing from one reading where
// another one is waited for, or a thread ends, at that moment; so two in a row must agree, and it wraps that error, too,
// where none do.
func listChildren(pid int) ([]int, error) {
	children, err := readChildren(pid)
	for range 8 {
		var again []int
		if err == nil {
			again, err = readChildren(pid)
		}
		if err != nil || slices.Equal(children, again) {
			return children, err
		}
		children = again
	}
	return nil, fmt.Errorf("the children of process %d come and go: %w", pid, errors.ErrUnsupported)
}

func readChildren(pid int) ([]int, error) {
	tasks := "/proc/" + strconv.Itoa(pid) + "/task"
	threads, err := names(tasks)
	if errors.Is(err, os.ErrNotExist) {
		return nil, os.ErrProcessDone
	}
	if err != nil {
		return nil, err
	}
	var children []int
	missing := 0
	for _, thread := range threads {
		list, err := readProc(tasks + "/" + thread + "/children")
		if errors.Is(err, os.ErrNotExist) {
			missing++ // the file, or the thread by now
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, word := range strings.Fields(string(list)) {
			child, err := strconv.Atoi(word)
			if err != nil {
				return nil, fmt.Errorf("parse /proc/PID/task/TID/children: %w", err)
			}
			children = append(children, child)
		}
	}
	if missing < len(threads) {
		return children, nil
	}
	if _, err := readStat(pid); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("no list of children in %s: %w", tasks, errors.ErrUnsupported)
}

func names(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// readProc is os.ReadFile with a third of its system calls: it does not ask for the file's size, nor
// whether it can be waited for. A process or thread that has gone is os.ErrNotExist.
func readProc(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	for err == unix.EINTR {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	all := make([]byte, 0, 512)
	for {
		n, err := unix.Read(fd, all[len(all):cap(all)])
		if err == unix.EINTR {
			continue
		}
		if err == unix.ESRCH { // it went between open and read
			err = unix.ENOENT
		}
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return all, nil
		}
		if all = all[:len(all)+n]; len(all) == cap(all) {
			all = slices.Grow(all, len(all))
		}
	}
}
