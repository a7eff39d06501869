package intercept

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// confinement maps what seccomp and no_new_privs do to a thread of this process to the threads
// that it is done to.
func confinement(t *testing.T) map[string]int {
	t.Helper()
	files, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(files) == 0 {
		t.Fatal("no threads", err)
	}
	all := map[string]int{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // ended
		}
		what := ""
		for line := range strings.Lines(string(b)) {
			for _, field := range []string{"NoNewPrivs:", "Seccomp:", "Seccomp_filters:"} {
				if strings.HasPrefix(line, field) {
					what += strings.Join(strings.Fields(line), "") + " "
				}
			}
		}
		all[what]++
	}
	return all
}

// TestLauncherStaysClean: the filter and no_new_privs are the program's, not the launcher's. The
// test starts programs from as many goroutines as find the first thread too.
func TestLauncherStaysClean(t *testing.T) {
	before := confinement(t)
	if len(before) != 1 {
		t.Fatalf("the threads differ: %v", before)
	}
	var programs sync.WaitGroup
	for range 64 {
		programs.Go(func() {
			p, err := startProgram(Options{Mode: Fetch, Bind: share}, nil)
			if err != nil {
				t.Error(err)
				return
			}
			if answer := p.do("status", "Seccomp"); answer != "2" {
				t.Errorf("the program's Seccomp is %s, want 2", answer) // the control
			}
			p.end()
		})
	}
	programs.Wait()
	clean := func() error {
		after := confinement(t)
		for what := range before {
			if len(after) != 1 || after[what] == 0 {
				return fmt.Errorf("threads before: %v, after: %v", before, after)
			}
		}
		return nil
	}
	var err error
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = clean(); err == nil { // a thread takes a moment to end
			break
		}
	}
	if err != nil {
		t.Error(err)
	}

	// One that dies with its launcher keeps its thread, and no longer than it lives.
	p := start(t, Options{Mode: Fetch, ParentDeath: true}, nil)
	if after := confinement(t); len(after) != 2 {
		t.Errorf("with a program that dies with its launcher the threads are %v", after)
	}
	p.end()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = clean(); err == nil {
			break
		}
	}
	if err != nil {
		t.Error(err)
	}
}

// TestLauncherSurvivesTaskLimit: where no thread can be made any more, a start fails, and the launcher
// lives. The runtime ends the process that needs one then.
func TestLauncherSurvivesTaskLimit(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become a user that has no other process")
	}
	alone := &syscall.Credential{Uid: 48213, Gid: 48213}
	out, err := launcher(t, "few-tasks", &syscall.SysProcAttr{Credential: alone}).Output()
	if got, want := strings.TrimSpace(string(out)), "started some: true failed: true"; err != nil || got != want {
		t.Errorf("%.2000s, %v, want %s", got, err, want)
	}
}

// TestNoDirectory: a working directory that is none is not the program's fault.
func TestNoDirectory(t *testing.T) {
	for _, dir := range []string{"/does-not-exist", "/proc/self/status"} {
		cmd := exec.Command("/bin/true")
		cmd.Dir = dir
		_, err := Start(cmd, Options{Mode: Fetch, Bind: share})
		var e *exec.Error
		if err == nil || errors.As(err, &e) {
			t.Errorf("in %s: %v, want an error that is no *exec.Error", dir, err)
		}
	}
}

// TestRefillDoesNotQueue: a refill that meets a start, or another one, keeps no thread waiting for it.
func TestRefillDoesNotQueue(t *testing.T) {
	spare.Lock()
	defer spare.Unlock()
	refill() // one that waited would wait forever
}
