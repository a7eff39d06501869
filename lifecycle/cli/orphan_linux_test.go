package cli

import (
	"bufio"
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
	"overlap/reuse"
)

// A program whose launcher was killed serves on: status says so, reload cannot, stop ends it.
func TestProgramWithoutLauncher(t *testing.T) {
	program := exec.Command(os.Args[0])
	program.Env = append(os.Environ(), envListen+"=127.0.0.1:0", "GORACE=atexit_sleep_ms=0")
	stdout, err := program.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	defer program.Wait()
	defer program.Process.Kill()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(strings.TrimSpace(line))
	root := filepath.Join(t.TempDir(), "state")
	writeOrphan(t, root, program.Process.Pid, addr)

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

// writeOrphan writes what a launcher that died would have left.
func writeOrphan(t *testing.T, root string, pid int, addr netip.AddrPort) {
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
	dir, err := state.Open(root, "web")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := dir.Write(state.Record{Service: "web", Generation: 3, State: state.Serving, Owner: dead, Program: &id, Launched: true,
		Listeners: []state.Listener{{Network: "tcp", Address: addr.String(), Inodes: []uint64{there[0].Inode}}}, Started: time.Now()}); err != nil {
		t.Fatal(err)
	}
}

func call(root string, args ...string) (code int, stdout, stderr string) {
	var out, words bytes.Buffer
	code = Main(append([]string{"overlap", "--state-dir", root}, args...), &out, &words)
	return code, out.String(), words.String()
}
