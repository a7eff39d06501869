package state

import "golang.org/x/sys/unix"

// inMemory reports whether a file system has no disk behind it: statfs(2) names its kind.
func inMemory(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && (fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC)
}
