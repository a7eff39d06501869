package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"overlap/lifecycle/control"
	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
	"overlap/reuse"
)

// A program whose launcher was killed serves on: status says so, reload cannot, stop ends it.
func TestProgramWithoutLauncher(t *testing.T) {
	program, addr := startProgram(t, os.Geteuid())
	root := filepath.Join(t.TempDir(), "state")
	writeOrphan(t, root, "web", program.Process.Pid, addr)

	if code, out, _ := call(root, "status"); code != ExitOK || !strings.Contains(out, "serving (no launcher)") {
		t.Errorf("status: %d\n%s", code, out)
	}
	// Nobody counts its connections, which is not the same as none.
	if code, out, _ := call(root, "status", "--json"); code != ExitOK || !strings.Contains(out, `"connections":null,`) {
		t.Errorf("status --json: %d\n%s", code, out)
	}
	code, _, words := call(root, "reload")
	if want := "its launcher is dead\noverlap: hint: take over from its program: overlap run --name web -- COMMAND\n"; code != ExitFailed || !strings.HasSuffix(words, want) {
		t.Errorf("reload: %d\n%s", code, words)
	}
	if code, _, words := call(root, "stop"); code != ExitOK {
		t.Errorf("stop: %d\n%s", code, words)
	}
	program.Wait()
	if s := program.ProcessState.Sys().(syscall.WaitStatus); s.Signal() != syscall.SIGTERM {
		t.Errorf("the program ended by %v", s)
	}
	if code, _, _ := call(root, "status"); code != ExitNotRunning {
		t.Errorf("status: %d", code)
	}
}

// A program whose launcher had another stop signal is stopped by that one.
func TestStopSignalWithoutLauncher(t *testing.T) {
	program, addr := startProgram(t, os.Geteuid())
	root := filepath.Join(t.TempDir(), "state")
	writeOrphan(t, root, "web", program.Process.Pid, addr, func(r *state.Record) { r.StopSignal = syscall.SIGINT })
	if code, _, words := call(root, "stop"); code != ExitOK {
		t.Errorf("stop: %d\n%s", code, words)
	}
	program.Wait()
	if s := program.ProcessState.Sys().(syscall.WaitStatus); s.Signal() != syscall.SIGINT {
		t.Errorf("the program ended by %v", s)
	}
}

// startProgram starts what a launcher that died would have left.
func startProgram(t *testing.T, uid int) (*exec.Cmd, netip.AddrPort) {
	t.Helper()
	// The test binary may lie where another user cannot reach it: a descriptor can.
	self, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	program := exec.Command("/proc/self/fd/3")
	program.ExtraFiles = []*os.File{self}
	program.Dir = "/"
	if uid != os.Geteuid() {
		program.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	program.Env = append(os.Environ(), envListen+"=127.0.0.1:0", "GORACE=atexit_sleep_ms=0")
	stdout, err := program.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		program.Process.Kill()
		program.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return program, netip.MustParseAddrPort(strings.TrimSpace(line))
}

const another = 12345 // a user

// What another user's record names is not ended by root unless it is that user's.
func TestRecordOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root finds services of other users")
	}
	for name, owned := range map[string]bool{"program": false, "owner": true} {
		t.Run(name, func(t *testing.T) {
			program, addr := startProgram(t, 0)
			root := filepath.Join(t.TempDir(), "state")
			writeOrphan(t, root, "web", program.Process.Pid, addr)
			if owned {
				ownFor(t, root, program.Process.Pid)
			}
			giveAway(t, root)
			code, _, words := call(root, "stop", "--timeout", "1ms")
			if code != ExitFailed || !strings.Contains(words, fmt.Sprintf("user %d could not", another)) {
				t.Errorf("stop: %d\n%s", code, words)
			}
			if id, err := process.Of(program.Process.Pid); err != nil || !id.Alive() {
				t.Errorf("root's process was ended: %v", err)
			}
		})
	}
}

// Root ends what is another user's for that user, who removes the record.
func TestProgramOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root finds services of other users")
	}
	program, addr := startProgram(t, another)
	root := filepath.Join(t.TempDir(), "state")
	writeOrphan(t, root, "web", program.Process.Pid, addr)
	giveAway(t, root)
	if code, _, words := call(root, "stop"); code != ExitOK {
		t.Errorf("stop: %d\n%s", code, words)
	}
	program.Wait()
	if s := program.ProcessState.Sys().(syscall.WaitStatus); s.Signal() != syscall.SIGTERM {
		t.Errorf("the program ended by %v", s)
	}
}

// A link to the socket of root's own service, in another user's directory, does not lead there.
func TestSocketOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root finds services of other users")
	}
	socket := filepath.Join(t.TempDir(), "1.sock")
	var asked witness
	server, err := control.Serve(socket, &asked, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close(t.Context())
	program, addr := startProgram(t, 0)
	root := filepath.Join(t.TempDir(), "state")
	writeOrphan(t, root, "web", program.Process.Pid, addr)
	ownFor(t, root, program.Process.Pid)
	if err := os.Symlink(socket, filepath.Join(root, "web", "3.sock")); err != nil {
		t.Fatal(err)
	}
	giveAway(t, root)
	if code, out, words := call(root, "status"); code != ExitFailed || !strings.Contains(out, "(no answer)") {
		t.Errorf("status: %d\n%s%s", code, out, words)
	}
	if asked.Load() {
		t.Error("root's service was asked")
	}
}

// witness is a backend that takes note of a question for its status.
type witness struct {
	control.Backend
	atomic.Bool
}

func (w *witness) Status(context.Context, bool) (control.Status, error) {
	w.Store(true)
	return control.Status{Service: "web", Generations: []control.Generation{{Generation: 3, State: state.Serving}}}, nil
}

// Root's own service is meant, whatever another user calls one; where it has none of the name, the other's is.
func TestOwnServiceFirst(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root finds services of other users")
	}
	const name = "test-own-service-first"
	own := filepath.Join(t.TempDir(), "state")
	t.Setenv("RUNTIME_DIRECTORY", own)
	t.Setenv("TMPDIR", t.TempDir())
	theirs := filepath.Join(os.Getenv("TMPDIR"), "overlap-evil")
	status := func() (code int, stdout, stderr string) {
		var out, words bytes.Buffer
		code = Main([]string{"overlap", "status", name}, &out, &words)
		return code, out.String(), words.String()
	}
	there, at := startProgram(t, another)
	writeOrphan(t, theirs, name, there.Process.Pid, at)
	giveAway(t, theirs)
	if code, out, words := status(); code != ExitOK || !strings.Contains(out, at.String()) {
		t.Errorf("status of another user's: %d\n%s%s", code, out, words)
	}
	here, addr := startProgram(t, 0)
	writeOrphan(t, own, name, here.Process.Pid, addr)
	if code, out, words := status(); code != ExitOK || !strings.Contains(out, addr.String()) || strings.Contains(out, at.String()) {
		t.Errorf("status: %d\n%s%s", code, out, words)
	}
	// What cannot be read there is no failure of root's.
	if err := os.RemoveAll(own); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(theirs, name)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(own, filepath.Join(theirs, name)); err != nil {
		t.Fatal(err)
	}
	if code, _, words := status(); code != ExitNotRunning || !strings.Contains(words, "overlap: warning: ") {
		t.Errorf("status beside a link: %d\n%s", code, words)
	}
}

// ownFor has the generation of writeOrphan's record owned by a process that does not answer.
func ownFor(t *testing.T, root string, pid int) {
	t.Helper()
	dir, err := state.Open(root, "web")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	r, err := dir.Read(3)
	if err != nil {
		t.Fatal(err)
	}
	if r.Owner, err = process.Of(pid); err != nil {
		t.Fatal(err)
	}
	lock, err := dir.Own(3)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Unlock() })
	if err := dir.Write(r); err != nil {
		t.Fatal(err)
	}
}

// giveAway makes a state directory another user's.
func giveAway(t *testing.T, root string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, another, -1))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// writeOrphan writes what a launcher that died would have left.
func writeOrphan(t *testing.T, root, name string, pid int, addr netip.AddrPort, change ...func(*state.Record)) {
	t.Helper()
	there, err := reuse.Listening("tcp", addr.Port())
	if err != nil || len(there) != 1 {
		t.Fatal(there, err)
	}
	id, err := process.Of(pid)
	if err != nil {
		t.Fatal(err)
	}
	dead := id
	dead.PID, dead.Start = 1<<22, 1
	dir, err := state.Open(root, name)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	r := state.Record{Service: name, Generation: 3, State: state.Serving, Owner: dead, Program: &id, Launched: true,
		Listeners: []state.Listener{{Network: "tcp", Address: addr.String(), Inodes: []uint64{there[0].Inode}}}, Started: time.Now()}
	for _, f := range change {
		f(&r)
	}
	if err := dir.Write(r); err != nil {
		t.Fatal(err)
	}
}

func call(root string, args ...string) (code int, stdout, stderr string) {
	var out, words bytes.Buffer
	code = Main(append([]string{"overlap", "--state-dir", root}, args...), &out, &words)
	return code, out.String(), words.String()
}
