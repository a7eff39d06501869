package launcher

import (
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"overlap/lifecycle/owner"
	"overlap/lifecycle/process"
)

// sleeper starts a process that leads a group, and returns it with a channel that is closed when it has ended.
func sleeper(t *testing.T) (*exec.Cmd, <-chan struct{}) {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() { cmd.Process.Kill(); <-ended })
	return cmd, ended
}

// TestReusedNumber: what has the number of a program that was waited for is not signalled, nor is its group.
func TestReusedNumber(t *testing.T) {
	cmd, ended := sleeper(t)
	over := make(chan struct{})
	close(over)
	dead := func(ended chan struct{}) *program {
		return &program{cmd: &exec.Cmd{Process: &os.Process{Pid: cmd.Process.Pid}}, id: process.Identity{PID: cmd.Process.Pid}, ended: ended, reaped: true,
			kin: func(int) kinship { return unknown }, orphans: func(kinship) []int { return nil }}
	}
	dead(make(chan struct{})).signal(syscall.SIGKILL) // a successor is looked for
	dead(over).signal(syscall.SIGKILL)
	dead(over).kill()
	select {
	case <-ended:
		t.Fatal("a stranger was killed")
	case <-time.After(200 * time.Millisecond):
	}
	// The same where the group is the generation's.
	p := dead(over)
	p.kin = func(int) kinship { return relative }
	p.kill()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the group is not killed")
	}
}

// TestKillAll: what was started meanwhile is killed too, and no process that has got the number of one that ended.
func TestKillAll(t *testing.T) {
	first, firstEnded := sleeper(t)
	late, lateEnded := sleeper(t)
	other, otherEnded := sleeper(t)
	before, err := process.Of(other.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	before.Start--
	id, err := process.Of(first.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	process.KillAll(os.Geteuid(), []process.Identity{before}, func() []int {
		if id.Alive() {
			return []int{id.PID}
		}
		return []int{late.Process.Pid}
	})
	for _, ended := range []<-chan struct{}{firstEnded, lateEnded} {
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Fatal("one is left")
		}
	}
	select {
	case <-otherEnded:
		t.Error("another's process was killed")
	case <-time.After(200 * time.Millisecond):
	}
}

// TestWatchEnds: nothing is left of the watch over a process that has ended.
func TestWatchEnds(t *testing.T) {
	s := newSockets(&generation{owner: &owner.Owner{}, launched: make(chan struct{})})
	defer s.close()
	before := runtime.NumGoroutine()
	for range 10 {
		cmd, ended := sleeper(t)
		s.watch(cmd.Process.Pid)
		cmd.Process.Kill()
		<-ended
	}
	deadline := time.Now().Add(10 * time.Second)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, before %d", runtime.NumGoroutine(), before)
		}
		time.Sleep(time.Millisecond)
	}
}
