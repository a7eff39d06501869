package state

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"overlap/lifecycle/process"
)

var (
	// ErrBusy says that another handover of the service is on its way.
	ErrBusy = errors.New("another handover is on its way")
	// ErrOwned says that a generation's owner lives.
	ErrOwned = errors.New("the generation has an owner that lives")
)

const handoverLock = "handover.lock"

// How often a lock that is held is tried again. A blocking flock(2) cannot be
// cancelled without a signal, hence the polling.
const (
	retryFirst = 5 * time.Millisecond
	retryMost  = 50 * time.Millisecond
)

// Lock is a lock that is held. The kernel releases it when the process dies. Unlock is
// safe for concurrent use.
type Lock struct {
	file    *os.File
	kept    *os.File // the directory, kept from being cleaned up; nil where it is not
	once    sync.Once
	release func(*os.File)
	err     error
}

// Unlock releases the lock. A second Unlock does nothing.
func (l *Lock) Unlock() error {
	l.once.Do(func() {
		l.release(l.file)
		// Unlocking, before closing, releases it too where a child that is being
		// started still has a copy of the descriptor (flock(2)).
		err := flock(l.file, unix.LOCK_UN)
		if closed := l.file.Close(); err == nil {
			err = closed
		}
		if l.kept != nil {
			flock(l.kept, unix.LOCK_UN)
			l.kept.Close()
		}
		if err != nil {
			l.err = fmt.Errorf("unlock %s: %w", l.file.Name(), err)
		}
	})
	return l.err
}

func flock(f *os.File, how int) error {
	_, err := retryInterrupted(func() (struct{}, error) { return struct{}{}, unix.Flock(int(f.Fd()), how) })
	return os.NewSyscallError("flock", err)
}

// tryLock opens, or makes, the file, and locks it without waiting. A nil file without
// an error means that somebody holds it. The file that is locked is the one that has
// the name: it may have been removed between opening and locking.
func (d *Dir) tryLock(name string) (*os.File, error) {
	for {
		f, err := d.openAt(name, unix.O_RDWR|unix.O_CREAT)
		if err != nil {
			return nil, err
		}
		if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, nil
			}
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		same, err := d.hasName(f, name)
		if err != nil {
			f.Close()
			return nil, err
		}
		if same {
			return f, nil
		}
		f.Close()
	}
}

func (d *Dir) hasName(f *os.File, name string) (bool, error) {
	var opened, named unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &opened); err != nil {
		return false, os.NewSyscallError("fstat", err)
	}
	err := unix.Fstatat(int(d.dir.Fd()), name, &named, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, os.NewSyscallError("fstatat", err)
	}
	return opened.Dev == named.Dev && opened.Ino == named.Ino, nil
}

// Lock takes the service's handover lock, and waits for it until the context ends;
// then the error wraps ErrBusy and the context's error, and names the holder where it
// can. It is tried at least once. It cannot be taken twice, not even by one process.
func (d *Dir) Lock(ctx context.Context) (*Lock, error) {
	fail := func(err error) error { return fmt.Errorf("lock service %s for a handover: %w", d.name, err) }
	if err := d.mine(); err != nil {
		return nil, fail(err)
	}
	pause := retryFirst
	for {
		f, err := d.tryLock(handoverLock)
		if err != nil {
			return nil, fail(err)
		}
		if f != nil {
			signHolder(f)
			return &Lock{file: f, release: func(f *os.File) { f.Truncate(0) }}, nil
		}
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, fail(fmt.Errorf("%w%s: %w", ErrBusy, d.holder(), ctx.Err()))
		case <-timer.C:
			pause = min(2*pause, retryMost)
		}
	}
}

// signHolder writes who holds the lock, for the message of who waits in vain. A full
// disk must not keep anybody from a handover, so errors are nothing here.
func signHolder(f *os.File) {
	command := process.Command(os.Getpid())
	if command == "" {
		command = strings.Join(os.Args, " ")
	}
	if f.Truncate(0) == nil {
		f.WriteAt([]byte(strconv.Itoa(os.Getpid())+" "+command+"\n"), 0)
	}
}

// holder returns " (held by process 7: the command)", or nothing.
func (d *Dir) holder() string {
	f, err := d.openAt(handoverLock, unix.O_RDONLY)
	if err != nil {
		return ""
	}
	defer f.Close()
	line, err := io.ReadAll(io.LimitReader(f, 256))
	if err != nil {
		return ""
	}
	pid, command, ok := strings.Cut(strings.TrimSpace(string(line)), " ")
	if _, err := strconv.Atoi(pid); err != nil || !ok {
		return ""
	}
	return fmt.Sprintf(" (held by process %s: %s)", pid, command)
}

// ownTimeout bounds how long Own lets others look whether the lock is held.
const ownTimeout = 2 * time.Second

// Own takes generation n's lock, which says that its owner lives, and keeps it until
// Unlock or the process's death; children do not inherit it. The error is ErrOwned
// where somebody else has it.
func (d *Dir) Own(n int) (*Lock, error) {
	fail := func(err error) error { return fmt.Errorf("own generation %d of %s: %w", n, d.name, err) }
	if err := d.mine(); err != nil {
		return nil, fail(err)
	}
	if n < 1 || n > maxGeneration {
		return nil, fail(errors.New("no such number"))
	}
	name := strconv.Itoa(n) + ".lock"
	for end := time.Now().Add(ownTimeout); ; time.Sleep(time.Millisecond + rand.N(time.Millisecond)) {
		f, err := d.tryLock(name)
		if err != nil {
			return nil, fail(err)
		}
		if f != nil {
			l := &Lock{file: f, kept: d.keep()}
			l.release = func(*os.File) { d.forget(n, l) }
			d.mu.Lock()
			d.held[n] = l
			d.mu.Unlock()
			return l, nil
		}
		// Owned looks with a shared lock, and that is in the way for a moment too; only
		// an owner's is in the way of a shared one.
		if d.Owned(n) || time.Now().After(end) {
			return nil, fail(ErrOwned)
		}
	}
}

// keep has systemd-tmpfiles leave the directory alone, which would remove what is old in /tmp, and the locks with
// it: it skips a directory that somebody has locked (tmpfiles.d(5), "Age"). Nil is without the lock, where it is not
// to be had: who cleans up has it to itself for a moment, owners share it.
func (d *Dir) keep() *os.File {
	dir, err := openDirectoryAt(int(d.dir.Fd()), ".", d.path)
	if err != nil {
		return nil
	}
	for range 20 {
		if err = flock(dir, unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
		time.Sleep(retryFirst)
	}
	if err != nil {
		dir.Close()
		return nil
	}
	return dir
}

func (d *Dir) forget(n int, l *Lock) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held[n] == l {
		delete(d.held, n)
	}
}

// Owned says whether generation n has an owner that lives, this process included. A
// lock file that is there but cannot be looked at counts as owned: to take a living
// owner for dead would be worse.
func (d *Dir) Owned(n int) bool {
	f, err := d.openAt(strconv.Itoa(n)+".lock", unix.O_RDONLY)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	return flock(f, unix.LOCK_SH|unix.LOCK_NB) != nil
}
