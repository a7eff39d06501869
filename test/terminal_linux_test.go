package test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTerminal: on a terminal the program that serves is in the foreground, so that it may read,
// and ^C is for it; the launcher ends with it.
func TestTerminal(t *testing.T) {
	for name, test := range map[string]struct {
		flags []string
		code  int
	}{
		"graceful": {nil, 0},
		"killed":   {[]string{"--rude"}, 130},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			term := openTerminal(t) // closed after the processes have ended
			p := newPlace(t)
			port := freePort(t)
			launcher := p.startOn(term, append([]string{"overlap", "run", "--name", "web", "--stop-delay", "100ms", "--",
				"fixture", "--listen", "127.0.0.1:" + port}, test.flags...)...)
			number := p.serves("web", 0)
			for range 2 {
				pid, err := strconv.Atoi(strings.TrimSpace(p.answer(port)))
				if err != nil {
					t.Fatal(err)
				}
				p.until("wait for the foreground", func() error {
					group, err := unix.IoctlGetInt(int(term.master.Fd()), unix.TIOCGPGRP)
					if err != nil || group != pid {
						return fmt.Errorf("process group %d has the foreground (%v), the program is %d", group, err, pid)
					}
					return nil
				})
				if number == 1 {
					p.must("overlap", "reload", "--wait", "drained")
					number = p.serves("web", 1)
				}
			}
			if _, err := term.master.WriteString("\x03"); err != nil {
				t.Fatal(err)
			}
			p.ends(launcher, test.code)
			if out := term.said(); !strings.Contains(out, "fixture: listening") || test.code == 0 && !strings.Contains(out, "fixture: got INT") {
				t.Errorf("the terminal shows %q", out)
			}
		})
	}
}

// terminal is a pseudo-terminal, pty(7), and what was written to it.
type terminal struct {
	master, slave *os.File
	mu            sync.Mutex
	out           bytes.Buffer
}

func openTerminal(t testing.TB) *terminal {
	t.Helper()
	// Not os.OpenFile: its file would be in the runtime's poller, and Fd takes it out.
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		lacking(t, "no pseudo-terminals: %v", err)
	}
	term := &terminal{master: os.NewFile(uintptr(fd), "ptmx")}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if term.slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
		lacking(t, "no pseudo-terminals: %v", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(term, term.master) // until nobody has the other end
	}()
	t.Cleanup(func() {
		term.slave.Close()
		<-done
		term.master.Close()
	})
	return term
}

func (t *terminal) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.out.Write(b)
}

func (t *terminal) said() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.out.String()
}

// startOn starts a process as the first of a terminal's session.
func (p *place) startOn(term *terminal, words ...string) *background {
	p.t.Helper()
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Args[0] = words[0]
	cmd.Dir, cmd.Env = p.dir, p.env()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = term.slave, term.slave, term.slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	return p.follow("terminal", cmd)
}
