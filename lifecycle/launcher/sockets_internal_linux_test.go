package launcher

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"overlap/lifecycle/owner"
	"overlap/reuse"
	"overlap/reuse/intercept"
)

// TestComesWhileOthersGo: a socket that comes while somebody finds out what the program has closed is not taken for
// closed, nor is its address given up.
func TestComesWhileOthersGo(t *testing.T) {
	t.Run("closed", func(t *testing.T) { comeWhileOthersGo(t, false) })
	t.Run("given up", func(t *testing.T) { comeWhileOthersGo(t, true) })
}

func comeWhileOthersGo(t *testing.T, forget bool) {
	log := slog.New(slog.DiscardHandler)
	o, err := owner.Enter(t.Context(), owner.Config{Name: "web", Root: t.TempDir(), Launched: true, StartTimeout: 10 * time.Second, Log: log, UID: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	s := newSockets(&generation{owner: o, log: log, program: &program{tap: &intercept.Tap{}}})
	a := unusedAddress(t)
	var over atomic.Bool
	reviewing := make(chan struct{})
	go func() {
		defer close(reviewing)
		for !over.Load() {
			s.follows(false, forget)
		}
	}()
	defer func() { over.Store(true); <-reviewing }()
	const tries = 1000
	lost := 0
	for range tries {
		fd, ino := bound(t, a)
		if err := s.bindAndListen(a, fd, ino); err != nil {
			t.Error(err)
		}
		s.joining.Lock() // whoever looked while it came is done
		m := s.member(a)
		if m == nil || !slices.Contains(m.Inodes(), ino) {
			lost++
		} else {
			m.Drop(ino)
		}
		unix.Close(fd)
		s.joining.Unlock()
	}
	if lost > 0 {
		t.Errorf("%d of %d sockets that came are not the generation's", lost, tries)
	}
}

// bindAndListen does what happens at a bind and after a listen.
func (s *sockets) bindAndListen(a reuse.Address, fd int, ino uint64) error {
	s.g.owner.Claim(ino)
	s.joining.Lock()
	m, err := s.g.owner.Member(context.Background(), a)
	s.mu.Lock()
	s.pending[ino] = pending{address: a, uid: os.Geteuid(), member: m, pid: os.Getpid(), fd: fd, since: time.Now()}
	s.mu.Unlock()
	s.joining.Unlock()
	if err != nil {
		return err
	}
	for end := time.Now().Add(rand.N(200 * time.Microsecond)); time.Now().Before(end); {
	}
	if err := unix.Listen(fd, 1); err != nil {
		return err
	}
	_, err = s.lookAtPending()
	return err
}

func unusedAddress(t *testing.T) reuse.Address {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return reuse.Address{Network: "tcp", AddrPort: ln.Addr().(*net.TCPAddr).AddrPort()}
}

// bound is a socket that shares its port, as a program's.
func bound(t *testing.T, a reuse.Address) (fd int, ino uint64) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(reuse.Share(fd, a), unix.Bind(fd, &unix.SockaddrInet4{Port: int(a.AddrPort.Port()), Addr: a.AddrPort.Addr().As4()})); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return fd, st.Ino
}

// TestTriedAgain: what comes and can't be steered, or not be recorded and so not be steered, is as soon as it can.
func TestTriedAgain(t *testing.T) {
	for name, lifts := range map[string]func(t *testing.T, s *sockets, p *pending, record string) (lift func() error){
		"steering fails": func(_ *testing.T, s *sockets, p *pending, _ string) func() error {
			p.uid++ // of this user's group the socket is not
			return func() error {
				s.mu.Lock()
				defer s.mu.Unlock()
				for ino, p := range s.pending {
					p.uid--
					s.pending[ino] = p
					return nil
				}
				return errors.New("it is given up")
			}
		},
		"recording fails": func(t *testing.T, s *sockets, p *pending, record string) func() error {
			var err error
			if p.member, err = s.g.owner.Member(t.Context(), p.address); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.Remove(record), os.Mkdir(record, 0o700)); err != nil {
				t.Fatal(err)
			}
			return func() error { return os.Remove(record) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			log := slog.New(slog.DiscardHandler)
			root := t.TempDir()
			o, err := owner.Enter(t.Context(), owner.Config{Name: "web", Root: root, Launched: true, StartTimeout: 10 * time.Second, Log: log, UID: -1})
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			if err := o.Switch(t.Context()); err != nil {
				t.Fatal(err)
			}
			s := newSockets(&generation{owner: o, log: log, req: request{set: &settings{}}, program: &program{tap: &intercept.Tap{}}})
			defer s.close()
			a := unusedAddress(t)
			fd, ino := bound(t, a)
			defer unix.Close(fd)
			p := pending{address: a, uid: os.Geteuid(), pid: os.Getpid(), fd: fd, since: time.Now()}
			lift := lifts(t, s, &p, filepath.Join(root, "web", "1.json"))
			if err := unix.Listen(fd, 1); err != nil {
				t.Fatal(err)
			}
			s.pending[ino] = p
			caught := make(chan struct{})
			go func() { s.catchUp(); close(caught) }()
			select {
			case <-caught:
				t.Fatal("it was not tried again")
			case <-time.After(300 * time.Millisecond):
			}
			for err = lift(); err != nil; err = lift() { // it may be looked at now
				select {
				case <-caught:
					t.Fatal(err)
				case <-time.After(time.Millisecond):
				}
			}
			<-caught
			m := s.member(a)
			if m == nil || !slices.Contains(m.Inodes(), ino) || !m.Steered() {
				t.Errorf("the socket is not steered: %+v", m)
			}
		})
	}
}
