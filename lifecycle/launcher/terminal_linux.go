package launcher

import (
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"overlap/lifecycle/process"
)

// terminal is where the launcher was started from, nil where that is none or it is in the
// background.
type terminal struct {
	fd, group int
	program   atomic.Int64 // the group that was given the foreground, 0: none
	heard     chan os.Signal
	own       atomic.Bool   // the next SIGTSTP is follow's
	arrived   chan struct{} // it came
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
	// To write, and to give the foreground away, from the background. The programs inherit it, which is meant: one that
	// drains has lost the foreground to the next, and neither what it says (stty tostop) nor a read may stop it.
	signal.Ignore(syscall.SIGTTOU, syscall.SIGTTIN)
	t := &terminal{fd: fd, group: group, heard: make(chan os.Signal, 4), arrived: make(chan struct{}, 1)}
	signal.Notify(t.heard, syscall.SIGCONT, syscall.SIGTSTP)
	go func() {
		for s := range t.heard {
			switch {
			case s == syscall.SIGCONT:
				t.resume()
			case t.own.CompareAndSwap(true, false):
				t.arrived <- struct{}{}
			default: // ^Z: a shell's fg of what runs already says nothing, and the foreground is the launcher's
				t.signal(unix.SIGTSTP)
			}
		}
	}()
	return t
}

// give makes a program's process group the one that reads the terminal and gets ^C, unless a shell has
// put the launcher into the background.
func (t *terminal) give(group int) {
	if t == nil || group <= 0 {
		return
	}
	ours := t.ours()
	t.program.Store(int64(group))
	if ours {
		unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, group)
	}
}

// ours reports whether the foreground is the launcher's or its program's.
func (t *terminal) ours() bool {
	now, err := unix.IoctlGetInt(t.fd, unix.TIOCGPGRP)
	return err == nil && (now == t.group || now == int(t.program.Load()))
}

// restore takes the foreground back.
func (t *terminal) restore() {
	if t != nil {
		signal.Stop(t.heard)
		close(t.heard)
		t.takeBack()
	}
}

func (t *terminal) takeBack() {
	if t.ours() {
		unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, t.group)
	}
}

// follow stops the launcher where ^Z has stopped its program, which alone got it: the shell that
// started them both waits for the launcher, and has its terminal back then. fg and bg continue it,
// and it the program. It is called when a child has changed.
func (t *terminal) follow() {
	if t == nil || !t.stopped() {
		return
	}
	if !continuable() {
		t.resume()
		return
	}
	t.takeBack()
	t.own.Store(true)
	unix.Kill(0, unix.SIGTSTP) // the rest of the job, as behind a pipe
	<-t.arrived                // here too: what still waited would be forgotten at the continuation
	unix.Kill(os.Getpid(), unix.SIGSTOP)
}

// continuable reports whether a shell is there that could continue this process's group: setpgid(2)
// calls a group without one orphaned, and the kernel does not stop it for ^Z either.
func continuable() bool {
	session, err := unix.Getsid(0)
	if err != nil {
		return false
	}
	for pid := os.Getppid(); pid > 0; pid = process.Parent(pid) {
		group, err := unix.Getpgid(pid)
		if err != nil {
			return false
		}
		if group != unix.Getpgrp() {
			theirs, err := unix.Getsid(pid)
			return err == nil && theirs == session
		}
	}
	return false
}

// stopped reports whether the program has been stopped that has the foreground.
func (t *terminal) stopped() bool {
	group := int(t.program.Load())
	var info unix.Siginfo
	const stopped = 5 // CLD_STOPPED: one that is traced for a moment is trapped
	if group == 0 || unix.Waitid(unix.P_PID, group, &info, unix.WSTOPPED|unix.WNOHANG, nil) != nil || info.Code != stopped {
		return false
	}
	return t.ours()
}

// resume lets the program go on, in the foreground if the launcher has been put there.
func (t *terminal) resume() {
	t.give(int(t.program.Load()))
	t.signal(unix.SIGCONT)
}

func (t *terminal) signal(s syscall.Signal) {
	if group := int(t.program.Load()); group != 0 {
		unix.Kill(-group, s)
	}
}
