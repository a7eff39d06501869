package state

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const maxGeneration = 999_999_999

// maxSignal is the last there is on the systems that are supported: SIGRTMAX of Linux.
const maxSignal = 64

// Dir is one service's directory, held open. It is safe for concurrent use. Close it
// when done; locks taken from it live on until they are released.
type Dir struct {
	path string
	name string
	uid  int // whose directory it is
	dir  *os.File

	mu   sync.Mutex
	held map[int]*Lock // generations that are owned through this Dir
}

// Open opens the directory of a service below a state directory, and makes both,
// 0700, where they are not there (root's let others through: see [Dir.LetThrough]). A directory that belongs to somebody else, that
// others can write to, or that is a link is an error that says so. Root may open
// another user's service that exists, to read it; what would change it is refused.
func Open(root, name string) (*Dir, error) { return open(root, name, true) }

// Find is Open for a service that is there already: it makes nothing, and the error
// wraps fs.ErrNotExist where there is no such service.
func Find(root, name string) (*Dir, error) { return open(root, name, false) }

func open(root, name string, create bool) (*Dir, error) {
	if err := ValidName(name); err != nil {
		return nil, err
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("open service %s: %w", name, err)
	}
	above := makeNothing
	if create {
		above = makeParents
	}
	top, err := openDirectory(root, above)
	if err != nil {
		return nil, fmt.Errorf("open service %s: %w", name, err)
	}
	defer top.Close()
	info, err := top.Stat()
	if err != nil {
		return nil, fmt.Errorf("open service %s: %w", name, err)
	}
	path := filepath.Join(root, name)
	if create && owner(info) == os.Geteuid() {
		err := unix.Mkdirat(int(top.Fd()), name, 0o700)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("open service %s: %w", name, &fs.PathError{Op: "mkdir", Path: path, Err: err})
		}
	}
	dir, err := openDirectoryAt(int(top.Fd()), name, path)
	if create && errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("make %s: the directory above belongs to %s: %w", path, userName(owner(info)), fs.ErrPermission)
	}
	if err != nil {
		return nil, fmt.Errorf("open service %s: %w", name, err)
	}
	sub, err := dir.Stat()
	if err == nil && owner(sub) != owner(info) {
		err = fmt.Errorf("%s belongs to %s, and the directory above to %s: %w",
			path, userName(owner(sub)), userName(owner(info)), fs.ErrPermission)
	}
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("open service %s: %w", name, err)
	}
	return &Dir{path: path, name: name, uid: owner(sub), dir: dir, held: make(map[int]*Lock)}, nil
}

// Path returns the directory's absolute path.
func (d *Dir) Path() string { return d.path }

// Name returns the service's name.
func (d *Dir) Name() string { return d.name }

// UID returns the user that the service belongs to.
func (d *Dir) UID() int { return d.uid }

// SocketPath returns the path of generation n's control socket. It can be longer than
// a socket address holds; package control copes with that.
func (d *Dir) SocketPath(n int) string { return filepath.Join(d.path, strconv.Itoa(n)+".sock") }

// NotifyPath returns the path of the NOTIFY_SOCKET of generation n's program.
func (d *Dir) NotifyPath(n int) string { return filepath.Join(d.path, strconv.Itoa(n)+".notify") }

// LauncherPath returns the path of the socket where generation n's launcher answers its program.
func (d *Dir) LauncherPath(n int) string { return filepath.Join(d.path, strconv.Itoa(n)+".launcher") }

// Close closes the directory. It releases no lock.
func (d *Dir) Close() error { return d.dir.Close() }

// mine refuses changes to what root only looks at.
func (d *Dir) mine() error {
	if d.uid != os.Geteuid() {
		return fmt.Errorf("%s belongs to %s: %w", d.path, userName(d.uid), fs.ErrPermission)
	}
	return nil
}

// openAt opens a file of the directory and checks what was opened: a plain file of
// the directory's user that others can't write to. O_NONBLOCK is for a pipe that
// somebody put there.
func (d *Dir) openAt(name string, flags int) (*os.File, error) {
	path := filepath.Join(d.path, name)
	fd, err := retryInterrupted(func() (int, error) {
		return unix.Openat(int(d.dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o600)
	})
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EMLINK) {
		return nil, fmt.Errorf("%s is a symbolic link: %w", path, err)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%s is not a plain file", path)
	case owner(info) != d.uid:
		err = fmt.Errorf("%s belongs to %s, not to %s: %w", path, userName(owner(info)), userName(d.uid), fs.ErrPermission)
	case info.Mode().Perm()&0o022 != 0:
		err = fmt.Errorf("%s can be written by others (mode %04o): %w", path, info.Mode().Perm(), fs.ErrPermission)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Write puts generation r.Generation's record in place of the old one, in one step: a
// reader sees the old one or the new one, and when the disk is full, or the writer is
// killed, the old one stays. Schema is set; the rest must be valid. Mode 0600.
// Nothing is synced to the disk: a record means nothing after a boot.
func (d *Dir) Write(r Record) error {
	r.Schema = Schema
	file := strconv.Itoa(r.Generation) + ".json"
	fail := func(err error) error {
		return fmt.Errorf("write the record %s, the old one stays: %w", filepath.Join(d.path, file), err)
	}
	if err := d.mine(); err != nil {
		return fail(err)
	}
	if r.Service != d.name {
		return fail(fmt.Errorf("it is of service %q, not %q", r.Service, d.name))
	}
	if err := r.check(); err != nil {
		return fail(err)
	}
	data, err := json.Marshal(r)
	if err != nil {
		return fail(err)
	}
	if len(data) >= maxRecord {
		return fail(fmt.Errorf("it is longer than %d bytes", maxRecord))
	}
	temporary := temporaryPrefix(r.Generation) + rand.Text()
	if err := d.writeNew(temporary, append(data, '\n')); err != nil {
		d.unlink(temporary)
		return fail(err)
	}
	at := int(d.dir.Fd())
	if err := unix.Renameat(at, temporary, at, file); err != nil {
		d.unlink(temporary)
		return fail(os.NewSyscallError("rename", err))
	}
	return nil
}

func temporaryPrefix(n int) string { return "." + strconv.Itoa(n) + ".json." }

func (d *Dir) writeNew(name string, data []byte) error {
	f, err := d.openAt(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		f.Close()
		return err
	}
	return f.Close() // where a network file system says that it is full
}

func (d *Dir) unlink(name string) error {
	err := unix.Unlinkat(int(d.dir.Fd()), name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return &fs.PathError{Op: "remove", Path: filepath.Join(d.path, name), Err: err}
}

// Read returns generation n's record. The error wraps fs.ErrNotExist where there is
// none, and ErrRecord, with the file's name, where there is one that cannot be used.
func (d *Dir) Read(n int) (Record, error) {
	path := filepath.Join(d.path, strconv.Itoa(n)+".json")
	f, err := d.openAt(strconv.Itoa(n)+".json", unix.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, fmt.Errorf("read a record: %w", err)
	}
	if err != nil {
		return Record{}, fmt.Errorf("read a record: %w: %w", ErrRecord, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return Record{}, fmt.Errorf("read the record %s: %w: %w", path, ErrRecord, err)
	}
	r, err := Parse(data)
	if err == nil && (r.Service != d.name || r.Generation != n) {
		err = fmt.Errorf("%w: it is of generation %d of %s", ErrRecord, r.Generation, r.Service)
	}
	if err != nil {
		return Record{}, fmt.Errorf("read the record %s: %w", path, err)
	}
	return r, nil
}

// generationOf returns the number in a name like 12.json, 0 for any other name.
func generationOf(file, suffix string) int {
	digits, ok := strings.CutSuffix(file, suffix)
	if !ok || len(digits) > len(strconv.Itoa(maxGeneration)) {
		return 0
	}
	n, err := strconv.Atoi(digits)
	if err != nil || n < 1 || strconv.Itoa(n) != digits {
		return 0
	}
	return n
}

func (d *Dir) files() ([]string, error) {
	// A descriptor of its own, for each reading has a place in the directory.
	dir, err := openDirectoryAt(int(d.dir.Fd()), ".", d.path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.Readdirnames(-1)
}

// Generations returns the records, newest first, and an error for each that cannot be
// used (ErrRecord) or for the directory when it can't be read.
func (d *Dir) Generations() ([]Record, []error) {
	files, err := d.files()
	if err != nil {
		return nil, []error{fmt.Errorf("list the generations of %s: %w", d.name, err)}
	}
	var numbers []int
	for _, file := range files {
		if n := generationOf(file, ".json"); n > 0 {
			numbers = append(numbers, n)
		}
	}
	slices.SortFunc(numbers, func(a, b int) int { return b - a })
	var records []Record
	var errs []error
	for _, n := range numbers {
		r, err := d.Read(n)
		switch {
		case err == nil:
			records = append(records, r)
		case !errors.Is(err, fs.ErrNotExist): // removed meanwhile
			errs = append(errs, err)
		}
	}
	return records, errs
}

// Newest returns the highest number that any file of the directory speaks of,
// readable or not, and 0 when there is none: the next generation is the one after it.
func (d *Dir) Newest() (int, error) {
	files, err := d.files()
	if err != nil {
		return 0, fmt.Errorf("list the generations of %s: %w", d.name, err)
	}
	newest := 0
	for _, file := range files {
		for _, suffix := range []string{".json", ".lock", ".sock"} {
			newest = max(newest, generationOf(file, suffix))
		}
	}
	return newest, nil
}

// Remove deletes what there is of generation n: sockets, lock, record. It refuses,
// with ErrOwned, while another process or another Dir owns it. The record goes last,
// so that a crash leaves something to remove again. Nothing there is no error.
func (d *Dir) Remove(n int) error {
	if err := d.remove(n); err != nil {
		return fmt.Errorf("remove generation %d of %s: %w", n, d.name, err)
	}
	return nil
}

func (d *Dir) remove(n int) error {
	if err := d.mine(); err != nil {
		return err
	}
	d.mu.Lock()
	own := d.held[n] != nil
	d.mu.Unlock()
	if !own && d.Owned(n) {
		return ErrOwned
	}
	files, err := d.files()
	if err != nil {
		return err
	}
	number := strconv.Itoa(n)
	var errs []error
	for _, suffix := range []string{".sock", ".notify", ".launcher", ".lock"} {
		errs = append(errs, d.unlink(number+suffix))
	}
	for _, file := range files {
		if strings.HasPrefix(file, temporaryPrefix(n)) {
			errs = append(errs, d.unlink(file))
		}
	}
	return errors.Join(append(errs, d.unlink(number+".json"))...)
}
