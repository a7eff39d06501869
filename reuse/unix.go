package reuse

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A unix socket cannot be shared by two listeners. So a new one is bound to a
// temporary name beside the path and renamed over it at the switch: rename(2) is
// atomic, a client finds the old listener or the new one, and the old one keeps
// what is in its queue.
//
// The temporary name is kept as a second link to the socket's file for as long as
// the listener lives. So it can be reached before it is published, and the old
// one can take the path back when its successor dies. (Where a file system has no
// links, the temporary name itself is renamed, and neither is possible.)
const (
	unixTempPrefix = ".overlap-"

	// A temporary name that is younger than this may belong to a process in another
	// PID namespace that has not come to listen(2) yet.
	unixTempMinAge = 10 * time.Second

	unixLockWait = time.Second

	// A listener whose queue is full refuses to say who it is (EAGAIN).
	unixFullTries = 50
	unixFullEvery = 20 * time.Millisecond
)

// UnixListener is a listener on a unix socket's path. Its methods may be called
// from several goroutines. Connections that it accepts know the temporary name as
// their local address.
type UnixListener struct {
	*net.UnixListener

	path  string
	temp  string // the other link to the same file
	file  fs.FileInfo
	inode uint64
	mine  func(inode uint64) bool

	mu     sync.Mutex
	closed bool
}

// unixTemps are the temporary names that this process holds. A process id alone
// does not tell, because PID 1 of a container finds what PID 1 before it left.
var unixTemps sync.Map

// ListenUnix listens on a temporary name beside path, which must be absolute or
// stays relative to the working directory of this moment; Publish gives it the
// path. A file at path that nobody listens on is no error. A living listener there
// is an error that wraps [ErrStranger] and names its process, unless mine says that
// the inode of its socket is our own predecessor's; nil says so of none.
//
// Temporary names that dead processes have left for this path are removed. Paths
// longer than a socket's address (107 bytes) work on Linux, where /proc is mounted.
// Abstract names ("@name") cannot be renamed and are refused.
func ListenUnix(ctx context.Context, path string, mine func(inode uint64) bool) (*UnixListener, error) {
	l, err := listenUnix(ctx, path, mine)
	if err != nil {
		return nil, fmt.Errorf("listen on unix socket %s: %w", path, err)
	}
	return l, nil
}

func listenUnix(ctx context.Context, path string, mine func(inode uint64) bool) (*UnixListener, error) {
	if path == "" || path[0] == '@' || path[0] == 0 {
		return nil, fmt.Errorf("%w: it needs a path in the file system", fs.ErrInvalid)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := unixRefuseStranger(ctx, path, mine); err != nil {
		return nil, err
	}
	unixRemoveLeftovers(ctx, path)

	l := &UnixListener{path: path, temp: unixTempName(path), mine: mine}
	unixTemps.Store(l.temp, nil)
	if err := l.bind(ctx); err != nil {
		unixTemps.Delete(l.temp)
		return nil, err
	}
	return l, nil
}

// bind binds and listens, and removes what it made when it fails.
func (l *UnixListener) bind(ctx context.Context) (err error) {
	name, done, err := unixShortName(l.temp)
	if err != nil {
		return err
	}
	defer done()
	var config net.ListenConfig
	ln, err := config.Listen(ctx, "unix", name)
	if err != nil {
		return err
	}
	l.UnixListener = ln.(*net.UnixListener)
	l.UnixListener.SetUnlinkOnClose(false)
	defer func() {
		if err != nil {
			l.UnixListener.Close()
			os.Remove(l.temp)
		}
	}()
	if l.file, err = os.Lstat(l.temp); err != nil {
		return err
	}
	l.inode, err = unixInode(l.UnixListener, l.temp)
	return err
}

// Inode is the number of the socket itself, as /proc/PID/fd shows it (not the
// file's). On other platforms than Linux, which do not show a socket's number to
// others, it is the file's.
func (l *UnixListener) Inode() uint64 { return l.inode }

// Addr returns the path, whether it is published or not.
func (l *UnixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Chmod sets the permission bits of the socket's file; without it they are what
// the process's umask left. Call it before Publish.
func (l *UnixListener) Chmod(mode fs.FileMode) error { return os.Chmod(l.temp, mode) }

// Publish gives the listener the path, in one step: from now on clients reach this
// one. Whoever had the path before keeps its connections and its queue. It can be
// called again, to take the path back from a successor that has died. A stranger
// who has come to the path meanwhile is an error as at [ListenUnix].
func (l *UnixListener) Publish() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.publishLocked(); err != nil {
		return fmt.Errorf("publish unix socket %s: %w", l.path, err)
	}
	return nil
}

func (l *UnixListener) publishLocked() error {
	if l.closed {
		return net.ErrClosed
	}
	unlock, err := unixLock(filepath.Dir(l.path))
	if err == nil {
		defer unlock()
	} // without the lock only a Close of the predecessor at this very moment can interfere
	if l.hasPath() {
		return nil
	}
	if err := unixRefuseStranger(context.Background(), l.path, l.mine); err != nil {
		return err
	}
	second := unixTempName(l.path)
	unixTemps.Store(second, nil)
	defer unixTemps.Delete(second)
	if err := os.Link(l.temp, second); err != nil {
		// A file system without links: the temporary name itself becomes the path.
		return os.Rename(l.temp, l.path)
	}
	if err := os.Rename(second, l.path); err != nil {
		os.Remove(second)
		return err
	}
	return nil
}

// hasPath reports whether the file at the path is this listener's.
func (l *UnixListener) hasPath() bool {
	there, err := os.Lstat(l.path)
	return err == nil && os.SameFile(there, l.file)
}

// Dial connects to this very listener, whether it is published or not.
func (l *UnixListener) Dial(ctx context.Context) (net.Conn, error) {
	name := l.temp
	if there, err := os.Lstat(name); err != nil || !os.SameFile(there, l.file) {
		if !l.hasPath() {
			return nil, fmt.Errorf("dial unix socket %s: it is another listener's by now: %w", l.path, fs.ErrNotExist)
		}
		name = l.path
	}
	c, err := unixDial(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("dial unix socket %s: %w", l.path, err)
	}
	return c, nil
}

// Close stops listening and resets what is still in the queue ([AwaitBacklog] with
// [InodeQueue] tells when it is empty). It removes the path only if it is still this
// listener's. A second Close returns [net.ErrClosed].
func (l *UnixListener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fmt.Errorf("close unix socket %s: %w", l.path, net.ErrClosed)
	}
	l.closed = true
	l.removePath()
	err := l.UnixListener.Close()
	os.Remove(l.temp)
	unixTemps.Delete(l.temp)
	return err
}

// removePath removes the path under the lock that Publish takes, so that it cannot
// be a successor's by then. Without the lock it stays: a stale file is no harm. The
// socket is still open and holds its file, so the file's number is not another's.
func (l *UnixListener) removePath() {
	if !l.hasPath() {
		return
	}
	unlock, err := unixLock(filepath.Dir(l.path))
	if err != nil {
		return
	}
	defer unlock()
	if l.hasPath() {
		os.Remove(l.path)
	}
}

// unixRefuseStranger returns an error if the path is taken by somebody else.
func unixRefuseStranger(ctx context.Context, path string, mine func(uint64) bool) error {
	there, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if there.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("%w: the file there is no socket (%s)", fs.ErrExist, there.Mode().Type())
	}
	if mine == nil {
		mine = func(uint64) bool { return false }
	}
	s, found := unixListening(path)
	if !found {
		if s, found, err = unixAsk(ctx, path, mine); err != nil {
			return err
		}
	}
	if !found || mine(s.Inode) {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrStranger, s)
}

// unixAsk connects, which finds every living listener, also in another network
// namespace. The listener's process is then the one that called listen(2).
func unixAsk(ctx context.Context, path string, mine func(uint64) bool) (s Stranger, found bool, err error) {
	c, err := unixDial(ctx, path)
	for tries := 0; errors.Is(err, unix.EAGAIN) && tries < unixFullTries && ctx.Err() == nil; tries++ {
		time.Sleep(unixFullEvery)
		c, err = unixDial(ctx, path)
	}
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return Stranger{}, false, nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return Stranger{}, false, err
	case err != nil:
		// Its queue stays full, it is a datagram socket, or it may not be reached: there
		// is no saying that nobody is there.
		return Stranger{}, false, fmt.Errorf("%w: %w", ErrStranger, err)
	}
	defer c.Close()
	return unixPeer(c.(*net.UnixConn), path, mine), true, nil
}

func unixDial(ctx context.Context, path string) (net.Conn, error) {
	name, done, err := unixShortName(path)
	if err != nil {
		return nil, err
	}
	defer done()
	var d net.Dialer
	return d.DialContext(ctx, "unix", name)
}

// unixTempFor is what all temporary names for a path begin with. It is short
// whatever the path is.
func unixTempFor(path string) string {
	sum := fnv.New32a()
	sum.Write([]byte(filepath.Base(path)))
	return fmt.Sprintf("%s%08x-", unixTempPrefix, sum.Sum32())
}

// unixTempName is a new temporary name: what it is for, the process, and chance.
func unixTempName(path string) string {
	var chance [6]byte
	rand.Read(chance[:])
	name := unixTempFor(path) + strconv.Itoa(os.Getpid()) + "-" + hex.EncodeToString(chance[:])
	return filepath.Join(filepath.Dir(path), name)
}

// unixRemoveLeftovers removes temporary names of this path whose process is dead and
// that nobody listens on. What cannot be removed stays: it disturbs nobody.
func unixRemoveLeftovers(ctx context.Context, path string) {
	directory, prefix := filepath.Dir(path), unixTempFor(path)
	entries, err := os.ReadDir(directory)
	if err != nil {
		return
	}
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), prefix)
		if !ok || e.Type() != fs.ModeSocket {
			continue
		}
		digits, _, _ := strings.Cut(rest, "-")
		pid, err := strconv.Atoi(digits)
		name := filepath.Join(directory, e.Name())
		if err != nil || pid <= 0 || unixTempAlive(pid, name) {
			continue
		}
		if info, err := e.Info(); err != nil || time.Since(info.ModTime()) < unixTempMinAge {
			continue
		}
		c, err := unixDial(ctx, name)
		if err == nil {
			c.Close() // a process in another PID namespace, or an heir
		}
		if errors.Is(err, unix.ECONNREFUSED) {
			os.Remove(name)
		}
	}
}

// unixTempAlive reports whether the process of a temporary name lives.
func unixTempAlive(pid int, name string) bool {
	if pid == os.Getpid() {
		_, held := unixTemps.Load(name)
		return held
	}
	return !errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}

// unixLock takes a lock on the directory, so that looking whose a path is and
// changing it are one step among processes of this package.
func unixLock(directory string) (unlock func(), err error) {
	d, err := os.Open(directory)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(unixLockWait); ; time.Sleep(time.Millisecond) {
		err = unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { d.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(deadline) {
			d.Close()
			return nil, fmt.Errorf("lock %s: %w", directory, err)
		}
	}
}
