package reuse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// unixDir is a directory with a short path, as t.TempDir's can be too long for a
// socket's address.
func unixDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "u")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// unixServe answers every connection with its name until it is closed.
func unixServe(t *testing.T, l net.Listener, name string) {
	t.Helper()
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, name)
			c.Close()
		}
	})
	t.Cleanup(func() {
		l.Close()
		served.Wait()
	})
}

func unixRead(t *testing.T, c net.Conn, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func unixListen(t *testing.T, path string, predecessors ...*UnixListener) *UnixListener {
	t.Helper()
	l, err := ListenUnix(t.Context(), path, func(inode uint64) bool {
		for _, p := range predecessors {
			if p.Inode() == inode {
				return true
			}
		}
		return false
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func unixPublish(t *testing.T, l *UnixListener) {
	t.Helper()
	if err := l.Publish(); err != nil {
		t.Fatal(err)
	}
}

// unixWant checks who answers at the path.
func unixWant(t *testing.T, path, want string) {
	t.Helper()
	c, err := net.Dial("unix", path)
	if got := unixRead(t, c, err); got != want {
		t.Errorf("%s answered, want %s", got, want)
	}
}

// unixNeedsLinks skips where a socket's file cannot have a second name, so that a
// listener whose path another has taken cannot be reached.
func unixNeedsLinks(t *testing.T, l *UnixListener) {
	t.Helper()
	probe := l.temp + "-link"
	if err := os.Link(l.temp, probe); err != nil {
		t.Skipf("the file system cannot link a socket: %v", err)
	}
	os.Remove(probe)
}

func unixNames(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestUnixHandover(t *testing.T) {
	dir := unixDir(t)
	path := filepath.Join(dir, "s")
	old := unixListen(t, path)
	unixNeedsLinks(t, old)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the path is there before Publish: %v", err)
	}
	unixServe(t, old, "old")
	unixPublish(t, old)
	unixWant(t, path, "old")
	if got := old.Addr().String(); got != path {
		t.Errorf("address %s, want %s", got, path)
	}

	next := unixListen(t, path, old)
	unixServe(t, next, "next")
	unixWant(t, path, "old")
	c, err := next.Dial(t.Context())
	if got := unixRead(t, c, err); got != "next" {
		t.Errorf("Dial of the unpublished one reached %s", got)
	}
	unixPublish(t, next)
	unixWant(t, path, "next")
	for name, l := range map[string]*UnixListener{"old": old, "next": next} {
		c, err := l.Dial(t.Context())
		if got := unixRead(t, c, err); got != name {
			t.Errorf("Dial of %s reached %s", name, got)
		}
	}

	if err := old.Close(); err != nil { // the path is not its own any more
		t.Fatal(err)
	}
	unixWant(t, path, "next")
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	if left := unixNames(t, dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := next.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second close: %v", err)
	}
	if err := next.Publish(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("publish after close: %v", err)
	}
}

// What waited in the old listener's queue at the switch is still its own.
func TestUnixOldQueueSurvives(t *testing.T) {
	path := filepath.Join(unixDir(t), "s")
	old := unixListen(t, path)
	unixPublish(t, old)
	early, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	next := unixListen(t, path, old)
	unixPublish(t, next)
	unixServe(t, next, "next")
	unixWant(t, path, "next")
	unixServe(t, old, "old")
	if got := unixRead(t, early, nil); got != "old" {
		t.Errorf("%s answered", got)
	}
}

// A successor that dies leaves its file; the old one takes the path back.
func TestUnixTakeBack(t *testing.T) {
	path := filepath.Join(unixDir(t), "s")
	old := unixListen(t, path)
	unixNeedsLinks(t, old)
	unixServe(t, old, "old")
	unixPublish(t, old)
	next := unixListen(t, path, old)
	unixPublish(t, next)
	next.UnixListener.Close() // as if it had been killed
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		t.Fatal("the dead one answers")
	}
	unixPublish(t, old)
	unixWant(t, path, "old")
	unixPublish(t, old) // once more changes nothing
	unixWant(t, path, "old")
}

func TestUnixStaleFile(t *testing.T) {
	path := filepath.Join(unixDir(t), "s")
	dead, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	dead.Close()
	l := unixListen(t, path)
	unixServe(t, l, "new")
	unixPublish(t, l)
	unixWant(t, path, "new")
}

func TestUnixStranger(t *testing.T) {
	dir := unixDir(t)
	path := filepath.Join(dir, "s")
	stranger, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	unixServe(t, stranger, "stranger")
	for name, mine := range map[string]func(uint64) bool{"nobody": nil, "another": func(uint64) bool { return false }} {
		l, err := ListenUnix(t.Context(), path, mine)
		if !errors.Is(err, ErrStranger) {
			t.Fatalf("%s is ours: %v, %v", name, l, err)
		}
	}
	unixWant(t, path, "stranger")
	if left := unixNames(t, dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

// A stranger who comes between ListenUnix and Publish is not pushed aside.
func TestUnixStrangerBeforePublish(t *testing.T) {
	path := filepath.Join(unixDir(t), "s")
	l := unixListen(t, path)
	stranger, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	unixServe(t, stranger, "stranger")
	if err := l.Publish(); !errors.Is(err, ErrStranger) {
		t.Fatalf("published: %v", err)
	}
	unixWant(t, path, "stranger")
}

func TestUnixRefused(t *testing.T) {
	dir := unixDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		"":                               fs.ErrInvalid,
		"@name":                          fs.ErrInvalid,
		file:                             fs.ErrExist,
		dir:                              fs.ErrExist,
		filepath.Join(dir, "none", "s"):  fs.ErrNotExist,
		filepath.Join(file, "no", "dir"): nil,
	} {
		l, err := ListenUnix(t.Context(), path, nil)
		if err == nil {
			l.Close()
			t.Errorf("%q: no error", path)
		} else if want != nil && !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", path, err, want)
		}
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}

func TestUnixMode(t *testing.T) {
	path := filepath.Join(unixDir(t), "s")
	l := unixListen(t, path)
	if err := l.Chmod(0o620); err != nil {
		t.Fatal(err)
	}
	unixPublish(t, l)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o620 {
		t.Errorf("mode %v", got)
	}
}

// unixDeadPID is the number of a process that has ended.
func unixDeadPID(t *testing.T) int {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^$")
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return cmd.Process.Pid
}

func TestUnixLeftovers(t *testing.T) {
	dir := unixDir(t)
	path := filepath.Join(dir, "s")
	dead := unixDeadPID(t)
	past := time.Now().Add(-time.Hour)
	leave := func(name string, modified time.Time, listens bool) {
		ln, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		ln.(*net.UnixListener).SetUnlinkOnClose(false)
		if listens {
			t.Cleanup(func() { ln.Close() })
		} else {
			ln.Close()
		}
		if err := os.Chtimes(filepath.Join(dir, name), modified, modified); err != nil {
			t.Fatal(err)
		}
	}
	prefix := unixTempFor(path)
	kept := map[string]bool{
		fmt.Sprintf("%s%d-aa", prefix, dead):                              false,
		fmt.Sprintf("%s%d-bb", prefix, os.Getpid()):                       false, // an earlier process of our number
		fmt.Sprintf("%s%d-cc", prefix, os.Getppid()):                      true,  // lives
		fmt.Sprintf("%s%d-dd", unixTempFor("other"), dead):                true,  // of another path
		fmt.Sprintf("%sx-ee", prefix):                                     true,  // not of our making
		fmt.Sprintf("%s%d-ff-listens", prefix, dead):                      true,  // somebody listens
		fmt.Sprintf("%s%d-gg-young", prefix, dead):                        true,
		strings.TrimPrefix(fmt.Sprintf("%s%d-hh", prefix, dead), ".")[1:]: true,
	}
	for name := range kept {
		modified := past
		if strings.HasSuffix(name, "young") {
			modified = time.Now().Add(time.Hour)
		}
		leave(name, modified, strings.HasSuffix(name, "listens"))
	}
	l := unixListen(t, path)
	second := unixListen(t, path) // the first one's temporary name is in use
	for _, l := range []*UnixListener{l, second} {
		if _, err := os.Lstat(l.temp); err != nil {
			t.Error(err)
		}
	}
	for name, want := range kept {
		if _, err := os.Lstat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: kept %v, want %v", name, err == nil, want)
		}
	}
}

// A relative path means the directory of the moment of ListenUnix.
func TestUnixRelativePath(t *testing.T) {
	dir := unixDir(t)
	t.Chdir(dir)
	l := unixListen(t, "s")
	t.Chdir("/")
	unixServe(t, l, "here")
	unixPublish(t, l)
	unixWant(t, filepath.Join(dir, "s"), "here")
}

// Clients that connect while the path changes hands again and again are answered,
// all of them.
func TestUnixHandoverUnderLoad(t *testing.T) {
	path := filepath.Join(unixDir(t), "s")
	current := unixListen(t, path)
	unixServe(t, current, "0")
	unixPublish(t, current)

	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := net.Dial("unix", path)
				if err != nil {
					t.Errorf("dial: %v", err)
					return
				}
				c.SetDeadline(time.Now().Add(10 * time.Second))
				if b, err := io.ReadAll(c); err != nil || len(b) == 0 {
					t.Errorf("read %q: %v", b, err)
				}
				c.Close()
			}
		})
	}
	for i := 1; i <= 20; i++ {
		next := unixListen(t, path, current)
		unixServe(t, next, fmt.Sprint(i))
		unixPublish(t, next)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		err := AwaitBacklog(ctx, 0, InodeQueue("unix", 0, current.Inode()))
		cancel()
		if err != nil && !errors.Is(err, ErrNoProof) {
			t.Error(err)
		}
		if errors.Is(err, ErrNoProof) {
			break // without the proof the close can lose some
		}
		current.Close()
		current = next
	}
	close(stop)
	clients.Wait()
}
