package health

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// groupOfItsOwn also has the kernel kill the command when this process dies.
func groupOfItsOwn() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// wait waits for the command, kills what it left behind in its group, and reaps
// it: in that order, because until it is reaped no other process or group can
// get its number (WNOWAIT, waitid(2)). Where somebody else reaped it, the rest
// of the group is let go.
func (g *group) wait(reap func() error) error {
	var err error
	for {
		var info unix.Siginfo
		err = unix.Waitid(unix.P_PID, g.cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	g.mu.Lock()
	if err == nil {
		g.killLocked()
	}
	g.ended = true
	g.mu.Unlock()
	return reap()
}
