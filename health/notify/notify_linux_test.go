package notify

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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
	if _, err := Listen(path, 0o600, nil); !errors.Is(err, syscall.EADDRINUSE) {
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
	if _, err := Listen(filepath.Join(dir, strings.Repeat("n", 100)), 0o600, nil); !errors.Is(err, syscall.ENAMETOOLONG) {
		t.Errorf("a long name: %v", err)
	}
}

// A socket for senders of any user tells who sent, and takes no descriptor of theirs.
func TestOpenToAll(t *testing.T) {
	path := filepath.Join(directory(t), "s")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	messages := make(chan Message, 1)
	s, err := Listen(path, 0o666, func(m Message) bool {
		// The sender's end is closed by now: if there is no other one, this is the end of the file.
		r.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := r.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("a descriptor has come in: %v", err)
		}
		messages <- m
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if info, err := os.Lstat(path); err != nil || info.Mode() != os.ModeSocket|0o666 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	from, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(from)
	if err := unix.Sendmsg(from, []byte("READY=1"), unix.UnixRights(int(w.Fd())), &unix.SockaddrUnix{Name: path}, 0); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if m := receive(t, messages); m.Pid != os.Getpid() || !m.Ready() {
		t.Errorf("got %+v", m)
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
