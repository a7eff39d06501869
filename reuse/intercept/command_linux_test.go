package intercept

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestStartCommand: while execve takes its time, a process of one processor goes on with the rest.
func TestStartCommand(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can keep an execve waiting (fanotify)")
	}
	const held = 300 * time.Millisecond
	for _, c := range []struct {
		way   string
		alive bool
	}{{"start-command", true}, {"start-plainly", false}} {
		program := filepath.Join(t.TempDir(), "program")
		if err := os.WriteFile(program, []byte("#!/bin/true\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		gate := holdExec(t, program)
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(self, program)
		cmd.Env = append(os.Environ(), roleVariable+"="+c.way)
		cmd.Stderr = os.Stderr
		beats, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var seen atomic.Int64
		read := make(chan struct{})
		go func() {
			defer close(read)
			for b := make([]byte, 1); ; seen.Add(1) {
				if _, err := io.ReadFull(beats, b); err != nil {
					return
				}
			}
		}()
		gate.await(t)
		time.Sleep(held / 3) // what was on its way has come
		before := seen.Load()
		time.Sleep(held)
		during := seen.Load() - before
		gate.allow(t)
		<-read
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", c.way, err)
		}
		t.Logf("%s: %d steps of another goroutine in %v", c.way, during, held)
		if c.alive != (during > 2) {
			t.Errorf("%s: %d steps of another goroutine in %v", c.way, during, held)
		}
	}
}

// startBesideBeats is a process of one processor that starts a program beside a goroutine that
// shows that it goes on.
func startBesideBeats(start func(*exec.Cmd) error, program string) error {
	runtime.GOMAXPROCS(1)
	over := make(chan struct{})
	beaten := make(chan struct{})
	go func() {
		defer close(beaten)
		for {
			select {
			case <-over:
				return
			case <-time.After(10 * time.Millisecond):
				fmt.Print(".")
			}
		}
	}()
	cmd := exec.Command(program)
	err := start(cmd)
	close(over)
	<-beaten
	if err != nil {
		return err
	}
	if n := runtime.GOMAXPROCS(0); n != 1 {
		return fmt.Errorf("%d processors afterwards", n)
	}
	return cmd.Wait()
}

// execGate keeps each execve of a file waiting: fanotify(7), FAN_OPEN_EXEC_PERM.
type execGate struct {
	fd    int
	event unix.FanotifyEventMetadata
}

func holdExec(t *testing.T, path string) *execGate {
	t.Helper()
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC, unix.O_RDONLY|unix.O_CLOEXEC)
	if err == nil {
		err = unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_OPEN_EXEC_PERM, unix.AT_FDCWD, path)
	}
	if err != nil {
		missing(t, "no permission events of fanotify here: "+err.Error())
	}
	t.Cleanup(func() { unix.Close(fd) }) // lets through what waits
	return &execGate{fd: fd}
}

func (g *execGate) await(t *testing.T) {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(g.fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(p, int(10*time.Second/time.Millisecond)); n != 1 || err != nil {
		t.Fatalf("no execve: %d, %v", n, err)
	}
	if err := binary.Read(fdReader(g.fd), binary.NativeEndian, &g.event); err != nil {
		t.Fatal(err)
	}
}

func (g *execGate) allow(t *testing.T) {
	t.Helper()
	defer unix.Close(int(g.event.Fd))
	answer, err := binary.Append(nil, binary.NativeEndian, unix.FanotifyResponse{Fd: g.event.Fd, Response: unix.FAN_ALLOW})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(g.fd, answer); err != nil {
		t.Fatal(err)
	}
}

type fdReader int

func (f fdReader) Read(b []byte) (int, error) { return unix.Read(int(f), b) }
