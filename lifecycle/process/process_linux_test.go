package process

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestPidfdIsUsed(t *testing.T) {
	self, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	f, err := openPidfd(self.PID)
	if errors.Is(err, errors.ErrUnsupported) {
		if os.Getenv("OVERLAP_TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skipf("needs Linux 5.3, and a seccomp profile that lets pidfd_open through: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// Who may signal anything does so for a user only where that user could.
func TestSignalAs(t *testing.T) {
	const other = 12345
	c := start(t)
	h, err := Open(of(t, c.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.SignalAs(os.Geteuid(), 0); err != nil {
		t.Errorf("for its own user: %v", err)
	}
	if err := h.SignalAs(other, syscall.SIGKILL); !errors.Is(err, syscall.EPERM) {
		t.Errorf("for another user: %v", err)
	}
	if err := h.Signal(0); err != nil {
		t.Errorf("another user's signal came: %v", err)
	}
	if os.Geteuid() != 0 {
		return // only root can become another user
	}
	sleep := exec.Command("sleep", "60")
	sleep.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: other, Gid: other}}
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer sleep.Wait()
	defer sleep.Process.Kill()
	theirs, err := Open(of(t, sleep.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	for _, uid := range []int{other, 0} {
		if err := theirs.SignalAs(uid, 0); err != nil {
			t.Errorf("a process of user %d, for user %d: %v", other, uid, err)
		}
	}
	if err := theirs.SignalAs(other+1, 0); !errors.Is(err, syscall.EPERM) {
		t.Errorf("a process of user %d, for user %d: %v", other, other+1, err)
	}
}

func TestTree(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		if os.Getenv("OVERLAP_TEST_REQUIRE") == "1" {
			t.Fatal("needs sh")
		}
		t.Skip("needs sh")
	}
	// A shell, a shell below it, and the test binary below that; each says who it is.
	cmd := exec.Command(sh, "-c", `echo $$; sh -c 'echo $$; "$0"; exit' "$0"; exit`, os.Args[0])
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "PROCESS_TEST_CHILD=1")
	stdin, _ := cmd.StdinPipe()
	stdout, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer stdin.Close()
	lines := bufio.NewReader(stdout)
	var want []int
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if line == "ready\n" {
			break
		}
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, pid)
	}
	tree, err := Tree(want[0])
	if err != nil {
		t.Fatal(err)
	}
	// However it is found out.
	if scanned, err := scanTree(want[0]); err != nil || !slices.Equal(scanned, tree) {
		t.Errorf("Tree(%d) = %v, by the parents of all %v, %v", want[0], tree, scanned, err)
	}
	if children, err := Children(want[0]); err != nil || !slices.Equal(children, tree[1:2]) {
		t.Errorf("Children(%d) = %v, %v", want[0], children, err)
	}
	if len(tree) != 3 || !slices.Equal(tree[:2], want) {
		t.Errorf("Tree(%d) = %v, want %v and the grandchild", want[0], tree, want)
	}
	if mine, err := Tree(os.Getpid()); err != nil || !slices.Contains(mine, tree[2]) {
		t.Errorf("the test's own tree %v misses %d: %v", mine, tree[2], err)
	}
	stdin.Close()
	io.Copy(io.Discard, lines)
	cmd.Wait()
	if _, err := Tree(want[0]); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("tree of a process that ended: %v", err)
	}
	if _, err := scanTree(want[0]); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("scanned tree of a process that ended: %v", err)
	}
}

// TestChildrenMany: none is missing where there are more than one reading takes, and some end meanwhile.
func TestChildrenMany(t *testing.T) {
	const stay, pass = 150, 100
	start := func() *exec.Cmd {
		cmd := exec.Command("sleep", "60")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		return cmd
	}
	passing := make([]*exec.Cmd, 0, pass)
	var want []int
	for i := range stay {
		want = append(want, start().Process.Pid)
		if i < pass {
			passing = append(passing, start())
		}
	}
	var ending sync.WaitGroup
	ending.Go(func() {
		for _, cmd := range passing {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	for range 50 {
		got, err := Children(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range want {
			if !slices.Contains(got, pid) {
				t.Fatalf("%d is missing in %v", pid, got)
			}
		}
	}
	ending.Wait()
}

func TestParseStat(t *testing.T) {
	line := "7 (a) Z 1 (b\n) S 42 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 98765 1 2 3\n"
	s, err := parseStat([]byte(line))
	if err != nil || s != (stat{state: 'S', parent: 42, threads: 3, start: 98765}) {
		t.Errorf("%+v, %v", s, err)
	}
	for _, z := range []struct {
		stat
		zombie bool
	}{
		{stat{state: 'Z', threads: 1}, true},
		{stat{state: 'Z', threads: 2}, false}, // only the first thread has ended
		{stat{state: 'X'}, true},
		{stat{state: 'S', threads: 1}, false},
	} {
		if z.zombie != z.stat.zombie() {
			t.Errorf("%+v: zombie %v", z.stat, !z.zombie)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("7 (a b) S 42 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 98765 1 2 3\n"))
	f.Add([]byte("7 (a"))
	f.Add([]byte(")"))
	f.Fuzz(func(t *testing.T, raw []byte) { parseStat(raw) })
}
