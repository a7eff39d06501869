package main

import (
	"os"
	"os/exec"
	"syscall"
)

// isolation is how a trial's process starts. It ends when the thread that started it does: who
// starts one stays on its thread.
func isolation(ownNetwork bool) *syscall.SysProcAttr {
	// A session of its own: Ctrl-C is for the comparison, which ends a trial in order.
	attr := &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if ownNetwork {
		attr.Cloneflags = syscall.CLONE_NEWNET
	}
	return attr
}

// canIsolate reports whether a process may get a network namespace of its own.
func canIsolate() bool {
	if os.Geteuid() != 0 {
		return false
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envTrial+"=1")
	cmd.SysProcAttr = isolation(true)
	// It finds no order, says so, and ends.
	return cmd.Run() == nil
}
