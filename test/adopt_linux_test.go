package test

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// reusePorts is what SO_REUSEPORT is on a process's Internet sockets, by descriptor.
func reusePorts(t testing.TB, pid int) map[int]int {
	t.Helper()
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[int]int{}
	for _, e := range entries {
		to, err := os.Readlink(dir + "/" + e.Name())
		number, nerr := strconv.Atoi(e.Name())
		if err != nil || nerr != nil || !strings.HasPrefix(to, "socket:") {
			continue
		}
		fd, err := unix.PidfdGetfd(pidfd, number, 0)
		if err != nil {
			continue // it was closed
		}
		domain, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		value, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT)
		unix.Close(fd)
		if err == nil && (domain == unix.AF_INET || domain == unix.AF_INET6) {
			all[number] = value
		}
	}
	if len(all) < 2 {
		t.Fatalf("%v are process %d's sockets", all, pid)
	}
	return all
}
