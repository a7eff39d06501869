package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// reach calls use with a path for the socket that fits into a socket address (unix(7):
// 108 bytes with the final zero on Linux, 104 elsewhere). For a long one that is a path
// through the directory's descriptor, which is open as long as use runs.
func reach(path string, use func(path string) error) error {
	if len(path) <= maxSocketPath {
		return use(path)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	short, err := throughDescriptor(dir, filepath.Base(path))
	if err != nil {
		return fmt.Errorf("%s is longer than %d bytes: %w", path, maxSocketPath, err)
	}
	return use(short)
}

func dialUnix(ctx context.Context, path string) (*net.UnixConn, error) {
	var conn net.Conn
	err := reach(path, func(short string) (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "unix", short)
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// listenUnix listens on the path with the mode. A socket that a dead owner left there
// is removed; one that answers, or what is no socket, is an error.
func listenUnix(path string, mode fs.FileMode) (*net.UnixListener, error) {
	var ln *net.UnixListener
	err := reach(path, func(short string) (err error) {
		if err := removeStale(short, path); err != nil {
			return err
		}
		ln, err = net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
		return err
	})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false) // the short path may lead nowhere by then
	// Until here the mode is the umask's. Who connects is looked at all the same.
	if err := os.Chmod(path, mode); err != nil {
		ln.Close()
		os.Remove(path)
		return nil, err
	}
	return ln, nil
}

func removeStale(short, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s is there and is no socket", path)
	}
	conn, err := net.Dial("unix", short)
	if err == nil {
		conn.Close()
		return fmt.Errorf("%s is served by another process: %w", path, syscall.EADDRINUSE)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
