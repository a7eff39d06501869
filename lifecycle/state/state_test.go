package state

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"overlap/lifecycle/process"
)

// The test binary itself is the process that holds a lock: it takes it, says so, and
// lives until its standard input ends.
func TestMain(m *testing.M) {
	if what := os.Getenv("STATE_TEST_CHILD"); what != "" {
		if err := child(what); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func child(what string) error {
	if what == "full disk" {
		return fullDisk(os.Getenv("STATE_TEST_ROOT"))
	}
	d, err := Open(os.Getenv("STATE_TEST_ROOT"), "web")
	if err != nil {
		return err
	}
	if what == "handover" {
		_, err = d.Lock(context.Background())
	} else {
		_, err = d.Own(3)
	}
	if err != nil {
		return err
	}
	fmt.Println("held")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// holder starts a process that holds a lock, and returns what kills it.
func holder(t *testing.T, what, root string) (pid int, kill func()) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "STATE_TEST_CHILD="+what, "STATE_TEST_ROOT="+root)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		cmd.Process.Kill()
		stdin.Close()
		cmd.Wait()
	})
	t.Cleanup(kill)
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "held\n" {
		t.Fatalf("the holder did not start: %q, %v", line, err)
	}
	return cmd.Process.Pid, kill
}

func openService(t *testing.T) *Dir {
	t.Helper()
	d, err := Open(filepath.Join(t.TempDir(), "root"), "web")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func record(n int) Record {
	return Record{
		Service:    "web",
		Generation: n,
		State:      Serving,
		Owner:      process.Identity{PID: 7, Start: 8, Boot: "b", Namespace: 9},
		Program:    &process.Identity{PID: 10},
		Command:    []string{"web", "--flag"},
		Listeners:  []Listener{{Network: "tcp", Address: "127.0.0.1:80", Inodes: []uint64{1, 2}}},
		Started:    time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

func TestNames(t *testing.T) {
	for _, good := range []string{"a", "0", "web", "my-app_1.2", strings.Repeat("a", 48), "a..b"} {
		if err := ValidName(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", ".", "..", "-a", "_a", "A", "a/b", "a b", "ä", "a\x00", strings.Repeat("a", 49)} {
		if ValidName(bad) == nil {
			t.Errorf("%q is taken for a name", bad)
		}
	}
	for command, want := range map[string]string{
		"/usr/bin/Node":                "node",
		"./my app":                     "my-app",
		"python3.12":                   "python3.12",
		"":                             "service",
		"/":                            "service",
		"..":                           "service",
		"-x-":                          "x",
		"ünï":                          "n",
		strings.Repeat("b", 60):        strings.Repeat("b", 48),
		"/a/" + strings.Repeat("-", 9): "service",
	} {
		got := DefaultName(command)
		if got != want {
			t.Errorf("DefaultName(%q) = %q, want %q", command, got, want)
		}
		if err := ValidName(got); err != nil {
			t.Error(err)
		}
	}
}

func TestRecordsComeBack(t *testing.T) {
	d := openService(t)
	for _, n := range []int{2, 10, 1} {
		if err := d.Write(record(n)); err != nil {
			t.Fatal(err)
		}
	}
	got, errs := d.Generations()
	if len(errs) > 0 || len(got) != 3 || got[0].Generation != 10 || got[2].Generation != 1 {
		t.Fatalf("%+v, %v", got, errs)
	}
	want := record(10)
	want.Schema = Schema
	a, _ := json.Marshal(want)
	b, _ := json.Marshal(got[0])
	if string(a) != string(b) {
		t.Errorf("wrote %s\nread  %s", a, b)
	}
	if n, err := d.Newest(); n != 10 || err != nil {
		t.Errorf("newest %d, %v", n, err)
	}
	if names, err := Services(filepath.Dir(d.Path())); err != nil || !slices.Equal(names, []string{"web"}) {
		t.Errorf("services %v, %v", names, err)
	}
	for _, n := range []int{1, 2, 10, 11} {
		if err := d.Remove(n); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(d.Path()); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	if names, err := Services(filepath.Dir(d.Path())); err != nil || len(names) > 0 {
		t.Errorf("services %v, %v", names, err)
	}
	if _, err := d.Read(1); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrRecord) {
		t.Errorf("read what is not there: %v", err)
	}
}

// directoryMode is what a directory is made with: root's program may become any user.
func directoryMode() fs.FileMode {
	if os.Geteuid() == 0 {
		return 0o711
	}
	return 0o700
}

// TestLetThrough: what is open to other users in root's directories is in their reach, whatever the umask, and
// where it can't be the error names what is in the way.
func TestLetThrough(t *testing.T) {
	top := t.TempDir()
	modes := map[string]fs.FileMode{filepath.Dir(top): 0o755, top: 0o755}
	for path, mode := range modes {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	defer syscall.Umask(syscall.Umask(0o077))
	d, err := Open(filepath.Join(top, "root"), "web")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.LetThrough(); err != nil {
		t.Error(err)
	}
	for _, path := range []string{d.Path(), filepath.Dir(d.Path())} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != directoryMode() {
			t.Errorf("%s: %v, %v, want %v", path, info.Mode(), err, directoryMode())
		}
	}
	if err := os.Chmod(top, 0o710); err != nil {
		t.Fatal(err)
	}
	err = d.LetThrough()
	if os.Geteuid() != 0 {
		if err != nil {
			t.Errorf("not root: %v", err)
		}
		return
	}
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), top+" ") {
		t.Errorf("below a closed directory: %v", err)
	}
	defer func(was string) { systemRoot = was }(systemRoot)
	systemRoot = filepath.Dir(d.Path())
	for _, path := range []string{d.Path(), systemRoot} { // as an older version left them
		if err := os.Chmod(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(top, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := d.LetThrough(); err != nil {
		t.Errorf("the directories of an older version: %v", err)
	}
}

// TestRemoveSockets: a launcher that was killed leaves its program's sockets.
func TestRemoveSockets(t *testing.T) {
	d := openService(t)
	for _, path := range []string{d.SocketPath(1), d.NotifyPath(1), d.LauncherPath(1)} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Remove(1); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(d.Path()); err != nil || len(left) > 0 {
		t.Errorf("%v are left, %v", left, err)
	}
}

func TestModes(t *testing.T) {
	d := openService(t)
	if err := d.Write(record(1)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{
		filepath.Dir(d.Path()):            directoryMode(),
		d.Path():                          0o700, // until LetThrough
		filepath.Join(d.Path(), "1.json"): 0o600,
	} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", path, info.Mode().Perm(), err, want)
		}
	}
}

func TestBrokenRecords(t *testing.T) {
	d := openService(t)
	whole, err := json.Marshal(func() Record { r := record(1); r.Schema = Schema; return r }())
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"empty":         "",
		"truncated":     string(whole[:len(whole)/2]),
		"not json":      "hello",
		"null":          "null",
		"two":           string(whole) + string(whole),
		"schema":        strings.Replace(string(whole), `"schema":1`, `"schema":2`, 1),
		"other service": strings.Replace(string(whole), `"web"`, `"api"`, 1),
		"other number":  strings.Replace(string(whole), `"generation":1`, `"generation":2`, 1),
		"state":         strings.Replace(string(whole), `"serving"`, `"dancing"`, 1),
		"pid":           strings.Replace(string(whole), `"pid":7`, `"pid":-7`, 1),
		"huge":          string(whole) + strings.Repeat(" ", maxRecord),
	} {
		path := filepath.Join(d.Path(), "1.json")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := d.Read(1)
		if !errors.Is(err, ErrRecord) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := d.Write(record(2)); err != nil {
		t.Fatal(err)
	}
	if got, errs := d.Generations(); len(got) != 1 || len(errs) != 1 {
		t.Errorf("a broken record beside a good one: %+v, %v", got, errs)
	}
}

func TestLinksAndOthersFilesDoNotCount(t *testing.T) {
	d := openService(t)
	if err := d.Write(record(1)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(d.Path(), "1.json")
	elsewhere := filepath.Join(t.TempDir(), "record")
	if err := os.Rename(path, elsewhere); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, path); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Read(1); !errors.Is(err, ErrRecord) || !strings.Contains(err.Error(), "symbolic link") {
		t.Errorf("a linked record: %v", err)
	}
	if err := d.Write(record(1)); err != nil { // replaces the link, not what it points at
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Read(1); !errors.Is(err, ErrRecord) {
		t.Errorf("a record that others can write: %v", err)
	}
	if err := os.Symlink(elsewhere, filepath.Join(d.Path(), "2.lock")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Own(2); err == nil {
		t.Error("locked through a link")
	}
	if err := syscall.Mkfifo(filepath.Join(d.Path(), "3.lock"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Own(3); err == nil || !strings.Contains(err.Error(), "not a plain file") {
		t.Errorf("locked a pipe: %v", err)
	}
	if os.Geteuid() != 0 {
		return // only root can give a file away
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, 12345, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Read(1); !errors.Is(err, ErrRecord) || !strings.Contains(err.Error(), "belongs to user 12345") {
		t.Errorf("somebody else's record: %v", err)
	}
}

func TestDirectoriesThatAreRefused(t *testing.T) {
	top := t.TempDir()
	target := filepath.Join(top, "target")
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(top, "link")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(top, "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o770); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(top, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, words := range map[string]string{link: "symbolic link", open: "can be written by others", file: "not a directory"} {
		if _, err := Open(path, "web"); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("Open %s: %v", path, err)
		}
		if _, err := Root(path, nil); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("Root %s: %v", path, err)
		}
	}
	// The same for the service's own directory.
	if err := os.Symlink(target, filepath.Join(target, "web")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(target, "web"); err == nil || !strings.Contains(err.Error(), "symbolic link") {
		t.Errorf("a linked service: %v", err)
	}
}

func TestRootLooksAtOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	d := openService(t)
	if err := d.Write(record(1)); err != nil {
		t.Fatal(err)
	}
	root := filepath.Dir(d.Path())
	for _, path := range []string{root, d.Path(), filepath.Join(d.Path(), "1.json")} {
		if err := os.Chown(path, 12345, -1); err != nil {
			t.Fatal(err)
		}
	}
	theirs, err := Open(root, "web")
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	if got, errs := theirs.Generations(); len(got) != 1 || len(errs) > 0 || theirs.UID() != 12345 {
		t.Errorf("%v, %v, uid %d", got, errs, theirs.UID())
	}
	_, lock := theirs.Lock(t.Context())
	_, own := theirs.Own(1)
	for _, err := range []error{theirs.Write(record(1)), theirs.Remove(1), lock, own} {
		if !errors.Is(err, fs.ErrPermission) {
			t.Errorf("changed what is somebody else's: %v", err)
		}
	}
	if _, err := Open(root, "new"); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a new service below somebody else's: %v", err)
	}
	// What they could have put there as bait does not count.
	if err := os.Chown(filepath.Join(d.Path(), "1.json"), 0, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := theirs.Read(1); !errors.Is(err, ErrRecord) {
		t.Errorf("a record of yet another user's: %v", err)
	}
	for _, uids := range [][2]int{{12345, 0}, {0, 12345}} { // the directory above, and the service's
		if err := errors.Join(os.Chown(root, uids[0], -1), os.Chown(d.Path(), uids[1], -1)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(root, "web"); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("a service of user %d below a directory of user %d: %v", uids[1], uids[0], err)
		}
	}
}

func TestFindMakesNothing(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	if _, err := Find(root, "web"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if names, err := Services(root); len(names) > 0 || err != nil {
		t.Errorf("%v, %v", names, err)
	}
	if _, err := os.Stat(root); !errors.Is(err, fs.ErrNotExist) {
		t.Error("looking made the directory")
	}
	if _, err := Open(root, "../up"); err == nil {
		t.Error("a name led out of the directory")
	}
}

func TestRootOrder(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	restore := func(system, shared string) { systemRoot, sharedMem = system, shared }
	defer restore(systemRoot, sharedMem)
	systemRoot, sharedMem = filepath.Join(top, "run", "overlap"), filepath.Join(top, "shm")
	for _, dir := range []string{"runtime", "xdg", "tmp", "shm"} {
		if err := os.Mkdir(filepath.Join(top, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("runtime", filepath.Join(top, "link")); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{
		"RUNTIME_DIRECTORY": filepath.Join(top, "link") + ":/another",
		"XDG_RUNTIME_DIR":   filepath.Join(top, "xdg"),
		"TMPDIR":            filepath.Join(top, "tmp"),
	}
	getenv := func(key string) string { return env[key] }
	own := fmt.Sprintf("overlap-%d", os.Geteuid())
	block := func(path string) { // a file in the place of the directory
		t.Helper()
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{filepath.Join(top, "runtime")}
	if os.Geteuid() == 0 {
		want = append(want, systemRoot)
	}
	want = append(want, filepath.Join(top, "xdg", "overlap"), filepath.Join(top, "tmp", own), filepath.Join(top, "shm", own))
	for _, path := range want {
		if got, err := Root("", getenv); got != path || err != nil {
			t.Fatalf("got %s, %v, want %s", got, err, path)
		}
		block(path)
	}
	_, err = Root("", getenv)
	for _, path := range want {
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("the error does not say that %s was tried: %v", path, err)
		}
	}
	flag := filepath.Join(top, "a", "b")
	if got, err := Root(flag, getenv); got != flag || err != nil {
		t.Errorf("flag: %s, %v", got, err)
	}
}

func TestRootsExist(t *testing.T) {
	t.Setenv("RUNTIME_DIRECTORY", "")
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	t.Setenv("TMPDIR", t.TempDir())
	root, err := Root("", func(key string) string {
		if key == "XDG_RUNTIME_DIR" {
			return os.Getenv(key)
		}
		return ""
	})
	if err != nil {
		t.Fatal(err)
	}
	if own, others := Roots(); !slices.Contains(own, root) || slices.Contains(others, root) {
		t.Errorf("%s: own are %v, others' %v", root, own, others)
	}
	if os.Geteuid() != 0 {
		return // only root sees others', and can give one away
	}
	if err := os.Chown(root, 12345, -1); err != nil {
		t.Fatal(err)
	}
	if own, others := Roots(); slices.Contains(own, root) || !slices.Contains(others, root) {
		t.Errorf("%s given away: own are %v, others' %v", root, own, others)
	}
}

func TestHandoverLock(t *testing.T) {
	d := openService(t)
	pid, kill := holder(t, "handover", filepath.Dir(d.Path()))

	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := d.Lock(short)
	if !errors.Is(err, ErrBusy) || !errors.Is(err, context.DeadlineExceeded) ||
		!strings.Contains(err.Error(), fmt.Sprintf("held by process %d: ", pid)) {
		t.Errorf("while it is held: %v", err)
	}
	// The holder's death frees it, for who waits already.
	got := make(chan error, 1)
	go func() {
		l, err := d.Lock(t.Context())
		if err == nil {
			if _, twice := d.Lock(short); !errors.Is(twice, ErrBusy) {
				err = fmt.Errorf("taken twice: %w", twice)
			}
			err = errors.Join(err, l.Unlock())
		}
		got <- err
	}()
	kill()
	if err := <-got; err != nil {
		t.Error(err)
	}
	l, err := d.Lock(short) // free, so an ended context does not matter
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Unlock(), l.Unlock()); err != nil {
		t.Error(err)
	}
}

func TestHandoverLockIsExclusive(t *testing.T) {
	d := openService(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	inside := 0
	for range 4 {
		wg.Go(func() {
			for range 3 {
				l, err := d.Lock(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if inside++; inside != 1 {
					t.Error("two hold the lock")
				}
				mu.Unlock()
				mu.Lock()
				inside--
				mu.Unlock()
				l.Unlock()
			}
		})
	}
	wg.Wait()
}

func TestOwner(t *testing.T) {
	d := openService(t)
	if d.Owned(3) {
		t.Error("owned by nobody")
	}
	_, kill := holder(t, "own", filepath.Dir(d.Path()))
	if !d.Owned(3) {
		t.Error("not owned while the owner lives")
	}
	if _, err := d.Own(3); !errors.Is(err, ErrOwned) {
		t.Errorf("owned twice: %v", err)
	}
	if err := d.Remove(3); !errors.Is(err, ErrOwned) {
		t.Errorf("removed while its owner lives: %v", err)
	}
	kill()
	if d.Owned(3) {
		t.Error("owned by the dead")
	}
	l, err := d.Own(3)
	if err != nil {
		t.Fatal(err)
	}
	if !d.Owned(3) {
		t.Error("not owned by this process")
	}
	if err := d.Remove(3); err != nil { // the owner itself tidies up
		t.Error(err)
	}
	if err := l.Unlock(); err != nil {
		t.Error(err)
	}
}

// A cleaner of /tmp passes over a directory that it can't lock: systemd-tmpfiles tries LOCK_EX.
func TestDirectoryIsKeptWhileOwned(t *testing.T) {
	d := openService(t)
	clean := func() bool {
		dir, err := os.Open(d.Path())
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		return flock(dir, unix.LOCK_EX|unix.LOCK_NB) == nil
	}
	if !clean() {
		t.Error("kept for nobody")
	}
	var locks []*Lock
	for n := range 2 {
		l, err := d.Own(n + 1)
		if err != nil {
			t.Fatal(err)
		}
		locks = append(locks, l)
	}
	for _, l := range locks {
		if clean() {
			t.Error("not kept while a generation lives")
		}
		if err := l.Unlock(); err != nil {
			t.Error(err)
		}
	}
	if !clean() {
		t.Error("kept for the dead")
	}
}

// Looking takes the lock for a moment. Nobody who wants to own may fail of it.
func TestLookingDoesNotKeepFromOwning(t *testing.T) {
	d := openService(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					d.Owned(1)
				}
			}
		})
	}
	for range 50 {
		l, err := d.Own(1)
		if err != nil {
			t.Error(err)
			break
		}
		if err := l.Unlock(); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
}

func TestReaderSeesOldOrNew(t *testing.T) {
	d := openService(t)
	if err := d.Write(record(1)); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, errs := d.Generations(); len(errs) > 0 {
				t.Error(errs)
				return
			}
			if _, err := d.Read(1); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for i := range 200 {
		r := record(1)
		r.Command = []string{strings.Repeat("x", i*100)}
		if err := d.Write(r); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	wg.Wait()
}

func TestWriteRefusesWhatCannotBeRead(t *testing.T) {
	d := openService(t)
	for name, change := range map[string]func(*Record){
		"service": func(r *Record) { r.Service = "api" },
		"number":  func(r *Record) { r.Generation = 0 },
		"state":   func(r *Record) { r.State = "" },
		"size":    func(r *Record) { r.Directory = strings.Repeat("x", maxRecord) },
	} {
		r := record(1)
		change(&r)
		if d.Write(r) == nil {
			t.Errorf("%s: written", name)
		}
	}
	if left, _ := os.ReadDir(d.Path()); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func FuzzParse(f *testing.F) {
	r := record(1)
	r.Schema = Schema
	whole, err := json.Marshal(r)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte(`{"schema":1,"service":"a","generation":1e99}`))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Parse(data)
		if err != nil {
			if !errors.Is(err, ErrRecord) {
				t.Fatal(err)
			}
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(again); err != nil && len(again) <= maxRecord {
			t.Fatalf("%s\nwas read, and is not what it is written as: %v", data, err)
		}
	})
}
