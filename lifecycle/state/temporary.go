package state

import (
	"os"
	"path/filepath"
)

// MkdirTemp makes a new directory for the state of a service that lives no longer than a command or
// a test, as [os.MkdirTemp] does: the caller removes it. Its place is the first of $XDG_RUNTIME_DIR,
// /run and /dev/shm that is a file system in memory and lets the caller write, as the place of a
// service's state nearly always is, else the directory for temporary files. On a disk a measurement of many
// reloads a minute measures the file system: ext4 looks at each inode that was deleted in the last
// minute before it makes a file (recently_deleted in fs/ext4/ialloc.c), which took a quarter of a
// launcher's CPU time.
func MkdirTemp(pattern string) (string, error) {
	for _, parent := range []string{os.Getenv("XDG_RUNTIME_DIR"), filepath.Dir(systemRoot), sharedMem} {
		if !filepath.IsAbs(parent) || !inMemory(parent) {
			continue
		}
		if dir, err := mkdirTemp(parent, pattern); err == nil {
			return dir, nil
		}
	}
	return mkdirTemp("", pattern)
}

func mkdirTemp(parent, pattern string) (string, error) {
	dir, err := os.MkdirTemp(parent, pattern)
	if err == nil && os.Geteuid() == 0 {
		err = os.Chmod(dir, passable) // see [Dir.LetThrough]
	}
	return dir, err
}
