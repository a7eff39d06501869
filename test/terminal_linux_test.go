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

	"overlap/lifecycle/process"
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

// TestTerminalGivenBack: what comes after the launcher in a script, which has no job control, reads the terminal.
func TestTerminalGivenBack(t *testing.T) {
	term := openTerminal(t)
	p := newPlace(t)
	port := freePort(t)
	script := p.startOn(term, "sh", "-c", "overlap run --name web --stop-delay 100ms -- fixture --listen 127.0.0.1:"+port+"; read line; exit $line")
	p.serves("web", 0)
	program, err := strconv.Atoi(strings.TrimSpace(p.answer(port)))
	if err != nil {
		t.Fatal(err)
	}
	p.until("wait for the foreground", func() error {
		if group, err := unix.IoctlGetInt(int(term.master.Fd()), unix.TIOCGPGRP); err != nil || group != program {
			return fmt.Errorf("process group %d has the foreground (%v), the program is %d", group, err, program)
		}
		return nil
	})
	if _, err := term.master.WriteString("\x037\n"); err != nil {
		t.Fatal(err)
	}
	p.ends(script, 7)
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

// TestJobControl: ^Z stops the program and its launcher, as it stops a program without one, and gives the
// shell its terminal back; fg and bg continue them. In a session without a shell it stops nobody.
func TestJobControl(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		lacking(t, "needs bash: apt-get install bash")
	}
	term := openTerminal(t)
	p := newPlace(t)
	port := freePort(t)
	shell := p.startOn(term, bash, "--norc", "--noprofile", "-i")
	typed := func(line string) {
		t.Helper()
		if _, err := term.master.WriteString(line); err != nil {
			t.Fatal(err)
		}
	}
	state := func(pid int, want string) {
		t.Helper()
		p.until(fmt.Sprintf("find process %d in state %s", pid, want), func() error {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err != nil {
				return err
			}
			if _, rest, _ := strings.Cut(string(stat), ") "); !strings.Contains(want, rest[:1]) {
				return fmt.Errorf("its state is %s", rest[:1])
			}
			return nil
		})
	}
	foreground := func(group int) {
		t.Helper()
		p.until("wait for the foreground", func() error {
			now, err := unix.IoctlGetInt(int(term.master.Fd()), unix.TIOCGPGRP)
			if err != nil || now != group {
				return fmt.Errorf("process group %d has the foreground (%v), want %d", now, err, group)
			}
			return nil
		})
	}
	program := 0
	answers := func() {
		t.Helper()
		p.until("get an answer", func() error {
			text, err := answer(port)
			if err == nil && text != fmt.Sprintln(program) && text != strconv.Itoa(program) {
				err = fmt.Errorf("answered %q, want process %d", text, program)
			}
			return err
		})
	}
	typed("overlap run --name web --stop-delay 100ms -- fixture --listen 127.0.0.1:" + port + " | cat\n")
	p.serves("web", 0)
	if program, err = strconv.Atoi(strings.TrimSpace(p.answer(port))); err != nil {
		t.Fatal(err)
	}
	foreground(program)
	group, err := unix.Getpgid(process.Parent(program))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time the launcher has the foreground itself: fg of what runs tells nobody
		typed("\x1a")
		state(program, "T")
		foreground(shell.cmd.Process.Pid)
		typed("bg\n")
		answers()
		p.must("overlap", "reload", "--wait", "drained", "web") // the terminal stays the shell's
		if program, err = strconv.Atoi(strings.TrimSpace(p.answer(port))); err != nil {
			t.Fatal(err)
		}
		foreground(shell.cmd.Process.Pid)
		typed("fg\n")
		foreground(group)
		answers()
	}
	typed("\x1a")
	state(program, "T")
	typed("fg\n") // of what was stopped
	foreground(program)
	answers()
	typed("\x03")
	foreground(shell.cmd.Process.Pid)
	typed("exit 7\n")
	p.ends(shell, 7)

	// Without a shell.
	alone := p.startOn(openTerminal(t), "overlap", "run", "--name", "alone", "--stop-delay", "100ms", "--", "fixture", "--listen", "127.0.0.1:"+port)
	p.serves("alone", 0)
	if program, err = strconv.Atoi(strings.TrimSpace(p.answer(port))); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(-program, syscall.SIGTSTP); err != nil {
		t.Fatal(err)
	}
	answers()
	alone.cmd.Process.Signal(syscall.SIGTERM)
	p.ends(alone, 0)
}
