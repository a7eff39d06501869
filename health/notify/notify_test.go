package notify

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// patience is for what must happen; no test takes it when all is well.
const patience = 30 * time.Second

// The test binary is the sender where another process is needed.
func TestMain(m *testing.M) {
	if state := os.Getenv("OVERLAP_TEST_SEND"); state != "" {
		if err := Send(state); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		return
	}
	os.Unsetenv("NOTIFY_SOCKET")
	goleak.VerifyTestMain(m)
}

// directory is a temporary one with a short name.
func directory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "n")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func listen(t *testing.T, path string, accept func(Message) bool) *Socket {
	t.Helper()
	s, err := Listen(path, 0o600, accept)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// collect is a handler that passes messages on and believes them.
func collect() (accept func(Message) bool, messages chan Message) {
	messages = make(chan Message, 16)
	return func(m Message) bool {
		messages <- m
		return true
	}, messages
}

func receive[T any](t *testing.T, c <-chan T) (value T) {
	t.Helper()
	select {
	case value = <-c:
	case <-time.After(patience):
		t.Fatal("nothing came")
	}
	return value
}

func mustSend(t *testing.T, s *Socket, state string) {
	t.Helper()
	t.Setenv("NOTIFY_SOCKET", strings.TrimPrefix(s.Env(), "NOTIFY_SOCKET="))
	if err := Send(state); err != nil {
		t.Fatal(err)
	}
}

// sendFromChild sends from another process and returns its id.
func sendFromChild(t *testing.T, s *Socket, state string) int {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), s.Env(), "OVERLAP_TEST_SEND="+state,
		"GORACE=atexit_sleep_ms=0") // the race detector's own pause of a second
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("send from a child: %v: %s", err, out)
	}
	return cmd.Process.Pid
}

func isReady(s *Socket) bool {
	select {
	case <-s.Ready():
		return true
	default:
		return false
	}
}

func TestReady(t *testing.T) {
	accept, messages := collect()
	s := listen(t, filepath.Join(directory(t), "s"), accept)
	info, err := os.Lstat(s.Path())
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("mode %v", info.Mode())
	}

	mustSend(t, s, "STATUS=loading = 3 of 4\nMAINPID=17\n")
	m := receive(t, messages)
	if want := map[string]string{"STATUS": "loading = 3 of 4", "MAINPID": "17"}; !reflect.DeepEqual(m.Vars, want) {
		t.Errorf("variables %q, want %q", m.Vars, want)
	}
	if isReady(s) {
		t.Error("ready without READY=1")
	}
	for range 2 { // a second one does no harm
		pid := sendFromChild(t, s, "READY=1")
		if m := receive(t, messages); runtime.GOOS == "linux" && (m.Pid != pid || m.UID != os.Getuid()) {
			t.Errorf("from process %d of user %d, want %d of %d", m.Pid, m.UID, pid, os.Getuid())
		}
		receive(t, s.Ready())
	}
}

// Nothing is believed that the handler did not accept.
func TestNotAccepted(t *testing.T) {
	messages := make(chan Message, 16)
	s := listen(t, filepath.Join(directory(t), "s"), func(m Message) bool {
		messages <- m
		return m.Vars["FROM"] == "us"
	})
	mustSend(t, s, "READY=1\nFROM=them")
	receive(t, messages)
	mustSend(t, s, "FROM=us") // handled after the first: that one has had its effect
	receive(t, messages)
	if isReady(s) {
		t.Error("a message that was not accepted made it ready")
	}
	mustSend(t, s, "READY=1\nFROM=us")
	receive(t, s.Ready())
}

func TestOversizedIsDropped(t *testing.T) {
	accept, messages := collect()
	s := listen(t, filepath.Join(directory(t), "s"), accept)
	t.Setenv("NOTIFY_SOCKET", s.Path())
	if err := Send("READY=1\nSTATUS=" + strings.Repeat("x", maxMessage)); err != nil && !errors.Is(err, syscall.EMSGSIZE) {
		t.Fatal(err) // macOS does not even send it
	}
	mustSend(t, s, "STATUS=next")
	if m := receive(t, messages); m.Vars["STATUS"] != "next" {
		t.Errorf("got %.40q", m.Vars)
	}
	if isReady(s) {
		t.Error("an oversized message was believed")
	}
}

// sd_notify_barrier(3) sends a descriptor and waits until it is closed.
func TestBarrier(t *testing.T) {
	s := listen(t, filepath.Join(directory(t), "s"), nil)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	from, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(from)
	rights := unix.UnixRights(int(w.Fd()))
	if err := unix.Sendmsg(from, []byte("BARRIER=1"), rights, &unix.SockaddrUnix{Name: s.Path()}, 0); err != nil {
		t.Fatal(err)
	}
	w.Close()
	r.SetReadDeadline(time.Now().Add(patience))
	if _, err := r.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the descriptor was kept: %v", err)
	}
}

func TestStaleAndLiveSocket(t *testing.T) {
	path := filepath.Join(directory(t), "s")
	dead, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("the predecessor left no file: %v", err)
	}
	s := listen(t, path, nil)
	if _, err := Listen(path, 0o600, nil); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("beside a live socket: %v", err)
	}
	mustSend(t, s, "READY=1")
	receive(t, s.Ready())

	file := filepath.Join(directory(t), "f")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file, 0o600, nil); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("on a file: %v", err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("the file is gone: %v", err)
	}
	if _, err := Listen(filepath.Join(path, "none", "s"), 0o600, nil); err == nil {
		t.Error("no error for a directory that is not there")
	}
}

func TestClose(t *testing.T) {
	path := filepath.Join(directory(t), "s")
	s := listen(t, path, nil)
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
	if isReady(s) {
		t.Error("ready by closing")
	}

	s = listen(t, path, nil)
	aside := path + "-aside" // keeps the inode from being used again
	if err := os.Rename(path, aside); err != nil {
		t.Fatal(err)
	}
	successor := listen(t, path, nil)
	s.Close()
	mustSend(t, successor, "READY=1")
	receive(t, successor.Ready())
}

func TestSendErrors(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Send("READY=1"); err != nil {
		t.Errorf("without NOTIFY_SOCKET: %v", err)
	}
	t.Setenv("NOTIFY_SOCKET", "vsock:2:1234")
	if err := Send("READY=1"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("vsock: %v", err)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(directory(t), "none"))
	if err := Send("READY=1"); !errors.Is(err, os.ErrNotExist) || strings.Count(err.Error(), "none") != 1 {
		t.Errorf("no socket: %v", err)
	}
}

func TestParse(t *testing.T) {
	for datagram, want := range map[string]map[string]string{
		"":                          {},
		"READY=1":                   {"READY": "1"},
		"READY=1\n\x00":             {"READY": "1"},
		"READY=1\x00STATUS=x":       {},
		"READY=1\nREADY=0":          {"READY": "1"},
		"ready=1\n=2\nX\nA B=3\n":   {},
		"STATUS=\nX_PORT2=a=b\n\n":  {"STATUS": "", "X_PORT2": "a=b"},
		"STATUS=\xff\u00fc\nREADY=": {"STATUS": "\xff\u00fc", "READY": ""},
	} {
		if got := Parse([]byte(datagram)); !reflect.DeepEqual(got, want) {
			t.Errorf("Parse(%q) = %q, want %q", datagram, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("READY=1\nSTATUS=a=b\n\x00"))
	f.Add([]byte("\x00\n=\nA=\nA=1"))
	f.Fuzz(func(t *testing.T, datagram []byte) {
		vars := Parse(datagram)
		var again strings.Builder
		for key, value := range vars {
			if !validKey(key) || strings.ContainsAny(value, "\n\x00") {
				t.Fatalf("variable %q=%q", key, value)
			}
			again.WriteString(key + "=" + value + "\n")
		}
		if got := Parse([]byte(again.String())); !reflect.DeepEqual(got, vars) {
			t.Fatalf("%q, and once more %q", vars, got)
		}
	})
}
