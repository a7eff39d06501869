// Package notify is both ends of the readiness protocol of service managers
// (sd_notify(3)): one datagram of KEY=VALUE lines to the unix socket that
// NOTIFY_SOCKET names.
//
// The invariant of the receiving end: nothing is believed that its handler did
// not accept, and the process id and user the handler is shown were checked by
// the kernel (SCM_CREDENTIALS, unix(7)): only a privileged sender can give
// others than its own. On other systems than Linux the kernel does not say, and
// both are zero.
package notify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxMessage is the largest datagram that is understood, systemd's limit.
	maxMessage = 4096
	// maxAddress is the longest path that fits into a socket address with its
	// final NUL byte (unix(7)). macOS and the BSDs have 4 bytes less.
	maxAddress = 107
	// sendTimeout bounds Send when the receiver has stopped reading.
	sendTimeout = 5 * time.Second
)

// A Message is one datagram.
type Message struct {
	Pid  int // of the sender, in this process's PID namespace; 0 where it cannot be seen from here
	UID  int // of the sender; 0 where the kernel does not say
	Vars map[string]string
}

// Ready says whether the message has READY=1.
func (m Message) Ready() bool { return m.Vars["READY"] == "1" }

// Parse reads the KEY=VALUE lines of a datagram. Keys are of A to Z, 0 to 9 and
// "_"; of several lines with one key the first counts; other lines are passed
// over. A datagram with a NUL byte, but for one at the end, has no variables.
func Parse(datagram []byte) map[string]string {
	datagram = bytes.TrimSuffix(datagram, []byte{0})
	vars := make(map[string]string)
	if bytes.IndexByte(datagram, 0) >= 0 {
		return vars
	}
	for line := range strings.SplitSeq(string(datagram), "\n") {
		key, value, ok := strings.Cut(line, "=")
		if _, again := vars[key]; !ok || again || !validKey(key) {
			continue
		}
		vars[key] = value
	}
	return vars
}

func validKey(key string) bool {
	for _, c := range []byte(key) {
		if (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return key != ""
}

// A Socket is the receiving end. Its methods may be called by several
// goroutines at once.
type Socket struct {
	path   string
	mode   fs.FileMode
	env    string
	dir    *os.File // held open while env refers to it; else nil
	file   fs.FileInfo
	conn   *net.UnixConn
	accept func(Message) bool

	ready     chan struct{}
	done      chan struct{}
	closeOnce sync.Once
	closeErr  error
}

// Listen makes a socket with a mode (0600, or 0666 for senders of any user) at
// path, which names a place in an existing directory. A file of a dead
// predecessor there is replaced; a socket that somebody still listens on is an
// error that wraps syscall.EADDRINUSE.
//
// accept is called for each message, from one goroutine, and says whether to
// believe it: a believed READY=1 closes [Socket.Ready]. Nil believes all that
// the mode lets in. accept must not call Close. Descriptors that come with a
// message are closed, those of one message before the next is read, so a
// sender's BARRIER=1 is answered. Messages over 4096 bytes are dropped.
func Listen(path string, mode fs.FileMode, accept func(Message) bool) (*Socket, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("listen for notifications: %w", err)
	}
	s := &Socket{path: path, mode: mode, accept: accept, ready: make(chan struct{}), done: make(chan struct{})}
	if err := s.bind(); err != nil {
		return nil, fmt.Errorf("listen for notifications on %s: %w", path, err)
	}
	go s.receive()
	return s, nil
}

// bind makes the socket file and whatever a too long path needs.
func (s *Socket) bind() (err error) {
	address := s.path
	s.env = s.path
	if len(s.path) > maxAddress {
		s.dir, address, err = shorten(s.path)
		if err != nil {
			return err
		}
		defer func() {
			if err != nil {
				s.dir.Close()
			}
		}()
		if s.env = shortenFor(s.dir, s.path); len(s.env) > maxAddress {
			return fmt.Errorf("the file's name: %w", syscall.ENAMETOOLONG)
		}
	}
	s.conn, err = bind(address, s.mode)
	if errors.Is(err, syscall.EADDRINUSE) && removeStale(address) {
		s.conn, err = bind(address, s.mode)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.conn.Close()
			os.Remove(s.path)
		}
	}()
	if err := os.Chmod(s.path, s.mode); err != nil {
		return err
	}
	s.file, err = os.Lstat(s.path)
	return err
}

func bind(address string, mode fs.FileMode) (*net.UnixConn, error) {
	config := net.ListenConfig{Control: control(mode)}
	conn, err := config.ListenPacket(context.Background(), "unixgram", address)
	if err != nil {
		return nil, cause(err)
	}
	return conn.(*net.UnixConn), nil
}

// cause takes the network and the address, which may be a makeshift, out of an
// error of package net.
func cause(err error) error {
	var e *net.OpError
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}

// removeStale removes the socket that stands at address if nobody listens on
// it.
func removeStale(address string) bool {
	info, err := os.Lstat(address)
	if err != nil || info.Mode().Type() != fs.ModeSocket {
		return false
	}
	conn, err := net.Dial("unixgram", address)
	if err == nil {
		conn.Close()
		return false
	}
	return errors.Is(err, syscall.ECONNREFUSED) && os.Remove(address) == nil
}

// Path returns where the socket's file is.
func (s *Socket) Path() string { return s.path }

// Env returns what to put into the program's environment: NOTIFY_SOCKET=… with
// the path, or, where that is too long for a socket address, a short one by way
// of this process's descriptor, which works as long as the Socket is open, for
// processes of the same user that see this one in /proc.
func (s *Socket) Env() string { return "NOTIFY_SOCKET=" + s.env }

// Ready returns a channel that is closed when a believed READY=1 has come. It
// stays open when the Socket is closed before.
func (s *Socket) Ready() <-chan struct{} { return s.ready }

// Close stops receiving and removes the file if it is still this socket's. The
// handler is not called after it has returned. A second call returns what the
// first did.
func (s *Socket) Close() error {
	s.closeOnce.Do(func() {
		s.closeErr = s.conn.Close()
		<-s.done
		if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, s.file) {
			s.closeErr = errors.Join(s.closeErr, os.Remove(s.path))
		}
		if s.dir != nil {
			s.dir.Close()
		}
	})
	return s.closeErr
}

// receive reads messages until the socket is closed.
func (s *Socket) receive() {
	defer close(s.done)
	believedReady := false
	buf := make([]byte, maxMessage)
	oob := make([]byte, oobSpace)
	for {
		n, oobn, flags, _, err := s.conn.ReadMsgUnix(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Of that one message, for there is no connection to lose. Should it
			// be the kernel that is short of memory, it is not pressed.
			time.Sleep(10 * time.Millisecond)
			continue
		}
		m, descriptors := attached(oob[:oobn])
		if flags&unix.MSG_TRUNC == 0 {
			m.Vars = Parse(buf[:n])
			if (s.accept == nil || s.accept(m)) && m.Ready() && !believedReady {
				believedReady = true
				close(s.ready)
			}
		}
		for _, fd := range descriptors {
			unix.Close(fd)
		}
	}
}

// attached reads what the kernel and the sender put beside a datagram.
func attached(oob []byte) (m Message, descriptors []int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return m, nil
	}
	for i := range messages {
		if fds, err := unix.ParseUnixRights(&messages[i]); err == nil {
			descriptors = append(descriptors, fds...)
			continue
		}
		credentials(&m, &messages[i])
	}
	return m, descriptors
}

// Send sends state, KEY=VALUE lines such as "READY=1", to the socket that
// NOTIFY_SOCKET names: a path, or "@" and an abstract name. Where that is not
// set, nobody wants to know and Send returns nil. It waits up to 5 s for a
// receiver that is behind.
func Send(state string) error {
	address := os.Getenv("NOTIFY_SOCKET")
	if address == "" {
		return nil
	}
	if err := send(address, state); err != nil {
		return fmt.Errorf("send notification to %s: %w", address, err)
	}
	return nil
}

func send(address, state string) error {
	if address[0] != '/' && address[0] != '@' {
		return fmt.Errorf("it is neither a path nor an abstract name: %w", errors.ErrUnsupported)
	}
	if address[0] == '/' && len(address) > maxAddress {
		dir, short, err := shorten(address)
		if err != nil {
			return err
		}
		defer dir.Close()
		address = short
	}
	conn, err := net.Dial("unixgram", address)
	if err != nil {
		return cause(err)
	}
	defer conn.Close()
	conn.SetWriteDeadline(time.Now().Add(sendTimeout))
	if _, err := conn.Write([]byte(state)); err != nil {
		return cause(err)
	}
	return nil
}
