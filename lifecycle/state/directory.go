package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const directoryFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// creating says what openDirectory may make.
type creating int

const (
	makeNothing creating = iota
	makeOne              // the directory, 0700, root's 0711
	makeParents          // the ones above it too, 0755
)

// openDirectory opens a state directory and checks what it opened: a directory, no
// link, that nobody but its owner can write to, and that belongs to the effective
// user, or the effective user is root.
func openDirectory(path string, create creating) (*os.File, error) {
	made := false
	if create == makeParents {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
	}
	if create != makeNothing {
		// The umask can only take away, and a mode of 0700 that loses owner's bits
		// shows when it is used.
		err := os.Mkdir(path, 0o700)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		made = err == nil
	}
	dir, err := openDirectoryAt(unix.AT_FDCWD, path, path)
	if err == nil && made && os.Geteuid() == 0 {
		err = dir.Chmod(passable) // see [Dir.LetThrough]
		if err != nil {
			dir.Close()
			return nil, err
		}
	}
	return dir, err
}

func openDirectoryAt(at int, name, path string) (*os.File, error) {
	fd, err := retryInterrupted(func() (int, error) { return unix.Openat(at, name, directoryFlags, 0) })
	if err != nil {
		// With O_DIRECTORY and O_NOFOLLOW a link is ENOTDIR on Linux, ELOOP or EMLINK
		// elsewhere.
		var st unix.Stat_t
		if unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return nil, fmt.Errorf("%s is a symbolic link, and a state directory must not be one", path)
		}
		return nil, &fs.PathError{Op: "open directory", Path: path, Err: err}
	}
	dir := os.NewFile(uintptr(fd), path)
	info, err := dir.Stat()
	if err == nil {
		err = checkOwned(info, path, os.Geteuid())
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// checkOwned says no to what belongs to somebody else than the wanted user, unless
// that is root who looks, and to what others could write to.
func checkOwned(info fs.FileInfo, path string, want int) error {
	if uid := owner(info); uid != want && want != 0 {
		return fmt.Errorf("%s belongs to %s, not to %s: %w", path, userName(uid), userName(want), fs.ErrPermission)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("%s can be written by others (mode %04o): %w", path, mode, fs.ErrPermission)
	}
	return nil
}

func retryInterrupted[T any](call func() (T, error)) (T, error) {
	for {
		v, err := call()
		if !errors.Is(err, unix.EINTR) {
			return v, err
		}
	}
}
