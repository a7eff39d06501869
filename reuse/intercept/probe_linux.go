package intercept

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Probe finds out which mode works here: Fetch, else Make, by starting a child
// of its own (the launcher's executable, see Main) for each. When neither does,
// it returns Off and an error that names what was refused and what lifts it.
// With an error and Make, the error says why Fetch does not work.
func Probe() (Mode, error) {
	fetchErr := try(Fetch)
	if fetchErr == nil {
		return Fetch, nil
	}
	makeErr := try(Make)
	if makeErr == nil {
		return Make, fetchErr
	}
	return Off, fmt.Errorf("intercept binds: at bind(2): %w; at socket(2): %w; without either, the program must set SO_REUSEPORT itself", fetchErr, makeErr)
}

// try runs a child in mode m and looks whether its socket came by.
func try(m Mode) error {
	path, err := executable()
	if err != nil {
		return err
	}
	var seen atomic.Bool
	o := Options{Mode: m, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if m == Fetch {
		o.Bind = func(Bind) error { seen.Store(true); return unix.EADDRNOTAVAIL }
	} else {
		o.Made = func(*os.File, int, int) error { seen.Store(true); return nil }
	}
	cmd := exec.Command(path)
	cmd.Args = []string{probedName}
	t, err := Start(cmd, o)
	if err != nil {
		return err
	}
	defer t.Close()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("mode %v: the child failed: %w", m, err)
	}
	if !seen.Load() {
		return fmt.Errorf("mode %v: %w", m, errors.New("the child's socket was not seen"))
	}
	return nil
}

// probed is the child's part: a socket, and a bind that the launcher refuses.
// Where it is not refused, the port is one that needs a privilege or is free
// again at once.
func probed() int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return 1
	}
	unix.Bind(fd, &unix.SockaddrInet4{Port: 1, Addr: [4]byte{127, 0, 0, 1}})
	return 0
}
