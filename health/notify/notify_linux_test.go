package notify

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A path too long for a socket address works by way of /proc, for listening,
// for our own Send, and for others through Env.
func TestLongPath(t *testing.T) {
	dir := filepath.Join(directory(t), strings.Repeat("long", 20), strings.Repeat("path", 20))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "socket")
	accept, messages := collect()
	s := listen(t, path, accept)
	if info, err := os.Lstat(path); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Fatalf("file: %v, %v", info, err)
	}
	if len(s.Env()) > len("NOTIFY_SOCKET=")+maxAddress {
		t.Errorf("%s is too long for a socket address", s.Env())
	}
	if _, err := Listen(path, nil); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("beside a live socket: %v", err)
	}
	pid := sendFromChild(t, s, "STATUS=by env")
	if m := receive(t, messages); m.Pid != pid || m.Vars["STATUS"] != "by env" {
		t.Errorf("got %+v", m)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	if err := Send("READY=1"); err != nil {
		t.Fatal(err)
	}
	receive(t, s.Ready())
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
	if _, err := Listen(filepath.Join(dir, strings.Repeat("n", 100)), nil); !errors.Is(err, syscall.ENAMETOOLONG) {
		t.Errorf("a long name: %v", err)
	}
}

// The longest path that fits is used as it is.
func TestLongestPlainPath(t *testing.T) {
	dir := directory(t)
	path := filepath.Join(dir, strings.Repeat("s", maxAddress-len(dir)-1))
	s := listen(t, path, nil)
	if s.Env() != "NOTIFY_SOCKET="+path {
		t.Errorf("%s", s.Env())
	}
	mustSend(t, s, "READY=1")
	receive(t, s.Ready())
}

func TestSendAbstract(t *testing.T) {
	name := fmt.Sprintf("@overlap-test-%d", os.Getpid())
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", name)
	if err := Send("READY=1"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "READY=1" {
		t.Errorf("%q, %v", buf[:n], err)
	}
}

// The real sender, which waits on a barrier until its message was handled.
func TestSystemdNotify(t *testing.T) {
	tool, err := exec.LookPath("systemd-notify")
	if err != nil {
		const why = "needs systemd-notify: apt-get install systemd"
		if os.Getenv("OVERLAP_TEST_REQUIRE") == "1" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	accept, messages := collect()
	s := listen(t, filepath.Join(directory(t), "s"), accept)
	cmd := exec.Command(tool, "--ready", "--status=all well")
	cmd.Env = append(os.Environ(), s.Env())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("systemd-notify: %v: %s", err, out)
	}
	if m := receive(t, messages); !m.Ready() || m.Vars["STATUS"] != "all well" || m.Pid == 0 {
		t.Errorf("got %+v", m)
	}
	receive(t, s.Ready())
}
