//go:build !linux

package intercept

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"sync"
)

// Tap is the launcher's end of a program that was started with Start.
type Tap struct {
	once sync.Once
	done chan struct{}
}

// Start starts cmd. Only Off works here: there is no seccomp outside Linux, and
// neither is ParentDeath.
func Start(cmd *exec.Cmd, o Options) (*Tap, error) {
	if o.Mode != Off {
		return nil, fmt.Errorf("intercept binds of %s on %s: %w", cmd.Path, runtime.GOOS, errors.ErrUnsupported)
	}
	if o.ParentDeath {
		return nil, fmt.Errorf("end %s with its launcher on %s: %w", cmd.Path, runtime.GOOS, errors.ErrUnsupported)
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &Tap{done: make(chan struct{})}, nil
}

// AwaitEnd returns an error: a program is waited for with cmd.Wait here.
func AwaitEnd(int) error { return errors.ErrUnsupported }

// Main returns at once: there is no step outside Linux.
func Main() {}

// NoNewPrivs returns false.
func (t *Tap) NoNewPrivs() bool { return false }

// Mode returns Off.
func (t *Tap) Mode() Mode { return Off }

func (t *Tap) steer(uint64) {}

func (t *Tap) gave(uint64) bool { return false }

// Close closes Done.
func (t *Tap) Close() error {
	t.once.Do(func() { close(t.done) })
	return nil
}

// Done is closed by Close.
func (t *Tap) Done() <-chan struct{} { return t.done }
