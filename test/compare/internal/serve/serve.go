// Package serve is the server of the comparison: the same handler behind each way in which a Go
// program gets its listening socket and is replaced.
//
// The invariant: modes differ in where the socket comes from and in who replaces whom, and in
// nothing else. Each ends as the standard library says: http.Server.Shutdown on SIGTERM. Only
// mode library leaves its end to overlap.
package serve

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	reuseport "github.com/libp2p/go-reuseport"
	"golang.org/x/sys/unix"

	"overlap/lifecycle"
)

// The modes.
const (
	Plain      = "plain"      // an ordinary listener
	Reuseport  = "reuseport"  // go-reuseport; who starts the next one stops this one
	FDPass     = "fdpass"     // SIGHUP starts a child with the socket, which stops its parent
	Activation = "activation" // a socket from LISTEN_FDS
	Holder     = "holder"     // holds the socket; SIGHUP stops the server (mode activation) and starts it again
	Starter    = "starter"    // a socket from SERVER_STARTER_PORT
	Library    = "library"    // overlap's library
)

const (
	// GenerationHeader names the generation that answers, as overlap's bench reads it.
	GenerationHeader = "Overlap-Generation"
	// PidHeader names the process that answers.
	PidHeader = "Compare-Pid"
	// Body is every answer's.
	Body = "The quick brown fox jumps over the lazy dog, and nobody notices."
)

// shutdownTimeout is what Shutdown gets before connections are cut, as overlap's library has it.
const shutdownTimeout = lifecycle.DefaultDrainTimeout

// envInherited tells a child of mode fdpass that descriptor 3 is the listener.
const envInherited = "COMPARE_INHERITED"

type server struct {
	mode, listen, stateDir string
	generation             string
	args                   []string
}

// Main runs the program with its arguments, without its name, and returns the exit code.
func Main(args []string) int {
	s := server{args: args}
	var file string
	flags := flag.NewFlagSet("server", flag.ContinueOnError)
	flags.StringVar(&s.mode, "mode", Plain, "where the socket comes from")
	flags.StringVar(&s.listen, "listen", "127.0.0.1:8080", "address to listen on")
	flags.StringVar(&s.stateDir, "state-dir", "", "overlap's state directory, for mode library")
	flags.StringVar(&file, "generation", "", "file with the name of the generation, read once")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	name, err := os.ReadFile(file)
	s.generation = strings.TrimSpace(string(name))
	if err == nil {
		err = s.run()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "server: error: mode %s: %v\n", s.mode, err)
		return 1
	}
	return 0
}

func (s *server) run() error {
	switch s.mode {
	case Library:
		return s.library()
	case Holder:
		return s.holder()
	case FDPass:
		return s.fdpass()
	}
	ln, err := s.listener()
	if err != nil {
		return err
	}
	return s.until(ln, notify(syscall.SIGTERM))
}

func (s *server) listener() (net.Listener, error) {
	switch s.mode {
	case Plain:
		return net.Listen("tcp", s.listen)
	case Reuseport:
		return reuseport.Listen("tcp", s.listen)
	case Activation:
		if n := os.Getenv("LISTEN_FDS"); n != "1" {
			return nil, fmt.Errorf("LISTEN_FDS is %q, want 1", n)
		}
		return inherited(3)
	case Starter:
		// "host:port=descriptor", several with semicolons between them.
		first, _, _ := strings.Cut(os.Getenv("SERVER_STARTER_PORT"), ";")
		_, fd, _ := strings.Cut(first, "=")
		n, err := strconv.Atoi(fd)
		if err != nil {
			return nil, fmt.Errorf("read SERVER_STARTER_PORT %q: %w", first, err)
		}
		return inherited(uintptr(n))
	}
	return nil, errors.New("unknown mode")
}

func inherited(fd uintptr) (net.Listener, error) {
	f := os.NewFile(fd, "listener")
	defer f.Close()
	return net.FileListener(f)
}

func notify(s ...os.Signal) <-chan os.Signal {
	c := make(chan os.Signal, 8)
	signal.Notify(c, s...)
	return c
}

// until serves until stop, then shuts down in the way of the standard library.
func (s *server) until(ln net.Listener, stop <-chan os.Signal) error {
	srv := &http.Server{Handler: s.handler()}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	select {
	case err := <-failed:
		return err
	case <-stop:
	}
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	return srv.Shutdown(ctx)
}

// fdpass is the tutorial's hot restart: SIGHUP starts a child with the listener, and the child
// stops its parent once it can serve.
func (s *server) fdpass() error {
	hangup, stop := notify(syscall.SIGHUP), notify(syscall.SIGTERM)
	child := os.Getenv(envInherited) != ""
	var ln net.Listener
	var err error
	if child {
		ln, err = inherited(3)
	} else {
		ln, err = net.Listen("tcp", s.listen)
	}
	if err != nil {
		return err
	}
	if child {
		if err := syscall.Kill(os.Getppid(), syscall.SIGTERM); err != nil {
			return fmt.Errorf("stop the parent: %w", err)
		}
	}
	go func() {
		for range hangup {
			if _, err := s.spawn(ln, FDPass, envInherited+"=1"); err != nil {
				fmt.Fprintln(os.Stderr, "server: error:", err)
			}
		}
	}()
	return s.until(ln, stop)
}

// spawn starts this program again in a mode, with the listener as descriptor 3.
func (s *server) spawn(ln net.Listener, mode string, env ...string) (*os.Process, error) {
	f, err := duplicate(ln.(*net.TCPListener))
	if err != nil {
		return nil, fmt.Errorf("copy the listener: %w", err)
	}
	defer f.Close()
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	args := append([]string{os.Args[0]}, s.args...)
	if mode != s.mode {
		args = append(args, "-mode", mode)
	}
	p, err := os.StartProcess(self, args, &os.ProcAttr{
		Env: append(os.Environ(), env...), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, f}})
	if err != nil {
		return nil, fmt.Errorf("start the next server: %w", err)
	}
	return p, nil
}

// duplicate returns a copy of the listener's descriptor that is still non-blocking. With the one
// from TCPListener.File, starting a process would make the listener itself block: then Accept
// hangs in the system call, and Close waits for one more connection, and drops it. Careful
// programs know that (tableflip does), so ours does too.
func duplicate(ln *net.TCPListener) (*os.File, error) {
	raw, err := ln.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var failed error
	if err := raw.Control(func(s uintptr) { fd, failed = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, os.NewSyscallError("fcntl", failed)
	}
	return os.NewFile(uintptr(fd), "listener"), nil
}

// holder keeps the listening socket open and restarts the server on it, as a service manager with
// socket activation does: the old one is stopped and has ended before the new one starts, and
// connections wait in the queue meanwhile.
func (s *server) holder() error {
	signals := notify(syscall.SIGHUP, syscall.SIGTERM)
	ln, err := net.Listen("tcp", s.listen)
	if err != nil {
		return err
	}
	defer ln.Close()
	for {
		child, err := s.spawn(ln, Activation, "LISTEN_FDS=1")
		if err != nil {
			return err
		}
		got := <-signals
		if err := child.Signal(syscall.SIGTERM); err != nil {
			return fmt.Errorf("stop the server: %w", err)
		}
		if _, err := child.Wait(); err != nil {
			return fmt.Errorf("wait for the server: %w", err)
		}
		if got == syscall.SIGTERM {
			return nil
		}
	}
}

// library is all that overlap needs. SIGHUP starts the next generation.
func (s *server) library() error {
	ctx := context.Background()
	g, err := lifecycle.New(lifecycle.Options{Name: "compare", StateDir: s.stateDir,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		return err
	}
	defer g.Close()
	ln, err := g.Listen(ctx, "tcp", s.listen)
	if err != nil {
		return err
	}
	g.HTTP(&http.Server{Handler: s.handler()}, ln)
	return g.Run(ctx)
}

func (s *server) handler() http.Handler {
	pid := strconv.Itoa(os.Getpid())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "text/plain")
		h.Set(GenerationHeader, s.generation)
		h.Set(PidHeader, pid)
		io.WriteString(w, Body)
	})
}
