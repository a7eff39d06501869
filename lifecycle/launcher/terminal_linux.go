package launcher

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// terminal is where the launcher was started from, nil where that is none or it is in the
// background.
type terminal struct {
	fd, group int
}

func findTerminal() *terminal {
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		return nil
	}
	group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	if err != nil || group != unix.Getpgrp() {
		return nil
	}
	// To write, and to give the foreground away, from the background.
	signal.Ignore(syscall.SIGTTOU, syscall.SIGTTIN)
	return &terminal{fd, group}
}

// give makes a program's process group the one that reads the terminal and gets ^C.
func (t *terminal) give(group int) {
	if t != nil && group > 0 {
		unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, group)
	}
}

// restore takes the foreground back.
func (t *terminal) restore() {
	if t != nil {
		unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, t.group)
	}
}
