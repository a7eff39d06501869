//go:build !linux

package health

import "syscall"

func groupOfItsOwn() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

// wait waits for the command and kills what it left behind in its group. The
// group's number is free for a moment before that, but process ids are handed
// out in turn here.
func (g *group) wait(reap func() error) error {
	err := reap()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.killLocked()
	g.ended = true
	return err
}
