package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// The places of DESIGN.md. Variables, so that tests can stand elsewhere.
var (
	systemRoot = "/run/overlap"
	userRoots  = "/run/user/*/overlap"
	sharedMem  = "/dev/shm"
)

// Root returns the state directory, made if it was not there. The flag, where not
// empty, is it or nothing. Else it is the first usable one of
//
//	$RUNTIME_DIRECTORY (the first of several, systemd.exec(5))
//	/run/overlap, for root
//	$XDG_RUNTIME_DIR/overlap
//	overlap-UID in $TMPDIR, else in /tmp
//	overlap-UID in /dev/shm
//
// Usable is a directory, not a link, that the effective user owns and nobody else can
// write to. The error lists each place that was tried, and why it could not be used.
// A nil getenv is os.Getenv.
func Root(flag string, getenv func(string) string) (string, error) {
	if getenv == nil {
		getenv = os.Getenv
	}
	if flag != "" {
		path, err := filepath.Abs(flag)
		if err == nil {
			err = usable(path, makeParents)
		}
		if err != nil {
			return "", fmt.Errorf("use the state directory %s: %w", flag, err)
		}
		return path, nil
	}
	var tried []error
	for _, path := range candidates(getenv) {
		// Where a place is named by something else than the user, only the directory
		// itself is made: a /tmp or /run/user/1000 of ours would have the wrong mode.
		create := makeOne
		if path == systemRoot {
			create = makeParents
		}
		err := usable(path, create)
		if err == nil && !ownedByCaller(path) {
			err = fmt.Errorf("%s belongs to somebody else", path)
		}
		if err == nil {
			return path, nil
		}
		tried = append(tried, err)
	}
	return "", fmt.Errorf("find a place for the state directory: %w", joinOneLine(tried))
}

func candidates(getenv func(string) string) []string {
	var paths []string
	if first, _, _ := strings.Cut(getenv("RUNTIME_DIRECTORY"), ":"); filepath.IsAbs(first) {
		// A service manager may give a link (DynamicUser= with a directory that is
		// preserved); what it points to is checked like any other.
		if real, err := filepath.EvalSymlinks(first); err == nil {
			first = real
		}
		paths = append(paths, filepath.Clean(first))
	}
	if os.Geteuid() == 0 {
		paths = append(paths, systemRoot)
	}
	if dir := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		paths = append(paths, filepath.Join(dir, "overlap"))
	}
	tmp := getenv("TMPDIR")
	if !filepath.IsAbs(tmp) {
		tmp = "/tmp"
	}
	own := "overlap-" + strconv.Itoa(os.Geteuid())
	return append(paths, filepath.Join(tmp, own), filepath.Join(sharedMem, own))
}

// usable makes the directory if need be, and tries whether it can be written to.
// Another user's is good enough for root, to read what is there.
func usable(path string, create creating) error {
	dir, err := openDirectory(path, create)
	if err != nil {
		return err
	}
	defer dir.Close()
	info, err := dir.Stat()
	if err != nil {
		return err
	}
	if owner(info) != os.Geteuid() {
		return nil
	}
	// A mode can allow what a read-only file system does not.
	probe, err := os.CreateTemp(path, ".probe-*")
	if err != nil {
		return err
	}
	probe.Close()
	return os.Remove(probe.Name())
}

// ownedByCaller keeps root from trusting a name in /tmp that somebody else took.
func ownedByCaller(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && owner(info) == os.Geteuid()
}

// joinOneLine is errors.Join for a message of one line.
func joinOneLine(errs []error) error {
	words := make([]string, len(errs))
	for i, err := range errs {
		words[i] = err.Error()
	}
	return &joined{strings.Join(words, "; "), errs}
}

type joined struct {
	words string
	errs  []error
}

func (j *joined) Error() string   { return j.words }
func (j *joined) Unwrap() []error { return j.errs }

// Roots returns the state directories on this machine that exist, for commands that
// look for services beyond the caller's own root: the caller's possible ones, in the
// order of Root, and for root those that belong to others. What a --state-dir elsewhere
// holds cannot be found.
func Roots() (own, others []string) {
	paths := candidates(os.Getenv)
	if os.Geteuid() == 0 {
		patterns := []string{userRoots}
		for _, dir := range []string{os.TempDir(), "/tmp", "/var/tmp", sharedMem} {
			patterns = append(patterns, filepath.Join(dir, "overlap-*"))
		}
		for _, pattern := range patterns {
			found, err := filepath.Glob(pattern)
			if err == nil {
				paths = append(paths, found...)
			}
		}
	}
	for _, path := range paths {
		if slices.Contains(own, path) || slices.Contains(others, path) {
			continue
		}
		dir, err := openDirectory(path, makeNothing)
		if err != nil {
			continue
		}
		info, err := dir.Stat()
		dir.Close()
		switch {
		case err != nil:
		case owner(info) == os.Geteuid():
			own = append(own, path)
		default: // a name of root's that somebody took, too
			others = append(others, path)
		}
	}
	return own, others
}

// Services returns the names of the services below a state directory that have at
// least one generation's record or lock, sorted. They need not run. A root that
// does not exist has none.
func Services(root string) ([]string, error) {
	dir, err := openDirectory(root, makeNothing)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the services of %s: %w", root, err)
	}
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return nil, fmt.Errorf("list the services of %s: %w", root, err)
	}
	var names []string
	for _, e := range entries {
		if !e.IsDir() || ValidName(e.Name()) != nil {
			continue
		}
		files, err := os.ReadDir(filepath.Join(root, e.Name()))
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue // ended meanwhile
			}
			return nil, fmt.Errorf("list the services of %s: %w", root, err)
		}
		if slices.ContainsFunc(files, func(f fs.DirEntry) bool {
			return generationOf(f.Name(), ".json") > 0 || generationOf(f.Name(), ".lock") > 0
		}) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

func owner(info fs.FileInfo) int {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(s.Uid)
	}
	return -1
}

func userName(uid int) string {
	if uid == 0 {
		return "root"
	}
	return "user " + strconv.Itoa(uid)
}
