package launcher_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	reuseport "github.com/libp2p/go-reuseport"
	"golang.org/x/sys/unix"

	"overlap/health/notify"
	"overlap/lifecycle"
	"overlap/lifecycle/bench"
)

// programConfig is what a program of the tests does; each generation reads it anew.
type programConfig struct {
	Kind     string        // "plain", "polite", "guest", "udp", "udp guest"
	Listen   []string      // "127.0.0.1:80"
	Sockets  int           // how many it has for each address; then it asks for SO_REUSEPORT itself
	Later    string        // an address that it listens on when asked for /later
	Late     string        // an address that it binds before it listens, and listens on much later
	Drop     string        // an address that it listens on no longer after SIGUSR1
	Workers  int           // processes, each with a socket of its own; one that ends is started again
	Reopen   bool          // at SIGUSR2 it listens anew, and closes the old listener a moment later
	Share    bool          // it sets SO_REUSEPORT itself
	Trap     string        // a file where it writes the name of the first signal that asks it to end, which ends it
	Drains   bool          // it ends by a drain that answers all that it accepted, and not by Shutdown
	Option   string        // what it does to its sockets: see setOption
	User     int           // who it becomes before it listens, where that is not 0
	Ready    bool          // it says READY=1 when it listens
	Anew     bool          // it does that first of all, and executes itself anew, as under gosu
	Then     int           // who it becomes once it listens
	UDP      []string      // addresses that it binds, and does not read from
	Reuses   bool          // those have SO_REUSEADDR
	Answer   time.Duration // what it takes from a datagram to its echo
	Fail     string        // "late": not healthy for a second; "unhealthy", "crash early", "crash in check", "hang", "never"
	Between  time.Duration // it takes from one listen to the next
	Slow     bool          // it accepts 0.2 s after it listens, as a master whose workers come later
	Stubborn bool          // it ignores SIGTERM
	Daemon   bool          // it goes into the background
	Twice    bool          // and its first child ends too, as daemon(7) advises
	Leaves   bool          // it listens, gives the socket to a child, and ends at some time soon
	Master   bool          // it listens, gives the socket to a worker, and leaves that behind when it ends
	Families bool          // it listens on 0.0.0.0, and on [::] where it may
	From     string        // where it is a client of To's before it listens, if it is one
	To       string
	Child    bool // it has a worker in a session of its own, which ignores SIGTERM too; in the background an orphan as well
}

// program is the main function of a program that knows nothing of overlap, but for the guest.
func program(path string) int {
	var c programConfig
	if err := read(path, &c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 97
	}
	if c.Anew && os.Getuid() != c.User {
		fmt.Fprintln(os.Stderr, c.stepDown())
		return 93
	}
	switch background := os.Getenv("BACKGROUND"); {
	case c.Daemon && c.Twice && background == "":
		return daemonize("BACKGROUND=half")
	case c.Daemon && (background == "" || background == "half"):
		return daemonize("BACKGROUND=1")
	case (c.Leaves || c.Master) && background == "":
		return c.leave()
	}
	if c.Stubborn {
		signal.Ignore(syscall.SIGTERM)
	}
	if c.Trap != "" {
		asked := make(chan os.Signal, 1)
		signal.Notify(asked, syscall.SIGTERM, syscall.SIGINT)
		go func() {
			os.WriteFile(c.Trap, []byte((<-asked).String()), 0o644)
			os.Exit(0)
		}()
	}
	if c.Child {
		switch os.Getenv("WORKER") {
		case "1":
			select {}
		case "half":
			return startWorker("1", (*exec.Cmd).Start)
		}
		if c.Daemon {
			syscall.CloseOnExec(3) // whoever waits for it waits for the listener
		}
		if code := startWorker("1", (*exec.Cmd).Start); code != 0 {
			return code
		}
		if c.Daemon {
			if code := startWorker("half", (*exec.Cmd).Run); code != 0 {
				return code
			}
		}
	}
	switch c.Fail {
	case "crash early":
		fmt.Fprintln(os.Stderr, "program: out of luck")
		return 7
	case "never":
		select {}
	}
	if err := c.serve(); err != nil {
		fmt.Fprintln(os.Stderr, "program:", err)
		return 20
	}
	return 0
}

// startWorker starts the program anew as a worker of one step, in a session of its own.
func startWorker(step string, start func(*exec.Cmd) error) int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), "WORKER="+step)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if start(cmd) != nil {
		return 95
	}
	return 0
}

// stepDown executes the program anew as its user.
func (c programConfig) stepDown() error {
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(c.User), syscall.Setuid(c.User)); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
}

// daemonize starts the program anew in a session of its own and returns when that listens, as
// a classic daemon does. One of two steps does not wait for that, and the first child ends a moment later,
// so that it has been seen.
func daemonize(step string) int {
	r, w, err := os.Pipe()
	if err != nil {
		return 96
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	half := os.Getenv("BACKGROUND") == "half"
	cmd.Env = append(os.Environ(), step)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if half {
		time.Sleep(20 * time.Millisecond)
	}
	if err := cmd.Start(); err != nil {
		return 96
	}
	w.Close()
	if step == "BACKGROUND=1" && !half {
		r.Read(make([]byte, 1))
	}
	return 0
}

// leave listens, and leaves the socket to a child, at once or when it is told to stop.
func (c programConfig) leave() int {
	ln, err := net.Listen("tcp", c.Listen[0])
	if err != nil {
		return 94
	}
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		return 94
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), "BACKGROUND=1")
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{f}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: c.Leaves}
	if err := cmd.Start(); err != nil {
		return 94
	}
	if c.Master {
		ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer cancel()
		<-ctx.Done()
		return 0
	}
	time.Sleep(rand.N(20 * time.Millisecond))
	return 0
}

// listen opens the program's sockets.
func (c programConfig) listen(lc net.ListenConfig) (all []net.Listener, err error) {
	if c.Leaves || c.Master {
		ln, err := net.FileListener(os.NewFile(3, "listener"))
		return []net.Listener{ln}, err
	}
	for i, addr := range slices.Repeat(c.Listen, max(c.Sockets, 1)) {
		if i > 0 {
			time.Sleep(c.Between)
		}
		network := c.network(addr)
		if c.Families {
			network = "tcp4"
		}
		ln, err := lc.Listen(context.Background(), network, addr)
		if err == nil {
			err = c.optionLater(ln)
		}
		if err != nil {
			return nil, err
		}
		all = append(all, ln)
	}
	if c.Families {
		_, port, _ := net.SplitHostPort(c.Listen[0])
		if ln, err := lc.Listen(context.Background(), "tcp", "[::]:"+port); err == nil {
			all = append(all, ln)
		}
	}
	return all, nil
}

func (c programConfig) serve() error {
	switch c.Kind {
	case "udp":
		lc := net.ListenConfig{Control: c.withOption(nil)}
		pc, err := lc.ListenPacket(context.Background(), "udp", c.Listen[0])
		if err != nil {
			return err
		}
		e := echoes{delay: c.Answer}
		return e.serve(pc)
	case "udp guest":
		g, err := lifecycle.New(lifecycle.Options{})
		if err != nil {
			return err
		}
		defer g.Close()
		pc, err := g.ListenPacket(context.Background(), "udp", c.Listen[0])
		if err != nil {
			return err
		}
		e := echoes{delay: c.Answer}
		g.ServePacket(pc, e.serve, e.drain)
		return g.Run(context.Background())
	}
	if c.Workers > 0 {
		return c.work()
	}
	if c.User != 0 && !c.Anew {
		if err := syscall.Setuid(c.User); err != nil {
			return err
		}
	}
	if c.Kind == "guest" {
		return lifecycle.ListenAndServe(&http.Server{Addr: c.Listen[0], Handler: c.handler()})
	}
	srv := &http.Server{Handler: c.handler()}
	var clients served
	srv.ConnState = clients.note
	failed := make(chan error, 1)
	lc := net.ListenConfig{}
	if c.Share || c.Sockets > 1 || c.Reopen || os.Getenv("WORKER_OF") != "" {
		lc.Control = reuseport.Control
		lc.SetMultipathTCP(false)
	}
	if c.From != "" {
		if _, err := connectFrom(c.From, c.To); err != nil {
			return err
		}
	}
	if err := c.bindDatagrams(); err != nil {
		return err
	}
	if c.Late != "" {
		if _, err := listenLate(c.Late, ""); err != nil {
			return err
		}
	}
	lc.Control = c.withOption(lc.Control)
	all, err := c.listen(lc)
	if err != nil {
		return err
	}
	if c.Then != 0 {
		if err := syscall.Setuid(c.Then); err != nil {
			return err
		}
	}
	if c.Ready {
		if err := notify.Send("READY=1"); err != nil {
			return err
		}
	}
	var accepting sync.WaitGroup
	for _, ln := range all {
		switch {
		case ln.Addr().String() == c.Drop:
			go c.dropAtSignal(ln)
			continue
		case c.Reopen:
			go c.reopenAtSignal(srv, ln)
		}
		accepting.Go(func() {
			if c.Slow {
				time.Sleep(200 * time.Millisecond)
				fmt.Fprintln(os.Stderr, "program: accepts")
			}
			if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) && !c.Reopen {
				select {
				case failed <- err:
				default: // one is enough
				}
			}
		})
	}
	if os.Getenv("BACKGROUND") != "" && !c.Leaves && !c.Master {
		os.NewFile(3, "ready").Close()
	}
	if c.Kind != "polite" {
		return <-failed
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		if !c.Drains {
			return srv.Shutdown(context.Background())
		}
		for _, ln := range all {
			ln.Close()
		}
		accepting.Wait()
		srv.SetKeepAlivesEnabled(false)
		clients.await()
		return nil
	}
}

// served counts a server's connections that are not idle. Shutdown drops a request that was read after it began.
type served struct {
	mu   sync.Mutex
	busy map[net.Conn]bool
}

func (s *served) note(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy == nil {
		s.busy = map[net.Conn]bool{}
	}
	if state == http.StateNew || state == http.StateActive {
		s.busy[c] = true
	} else {
		delete(s.busy, c)
	}
}

// await waits until there is none.
func (s *served) await() {
	for {
		s.mu.Lock()
		n := len(s.busy)
		s.mu.Unlock()
		if n == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// dropAtSignal serves until SIGUSR1, and listens no longer from then on.
func (c programConfig) dropAtSignal(ln net.Listener) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	go http.Serve(ln, c.handler())
	<-signals
	ln.Close()
}

// reopenAtSignal listens anew at SIGUSR2. What is queued at the old listener then is answered.
func (c programConfig) reopenAtSignal(srv *http.Server, ln net.Listener) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR2)
	<-signals
	again, err := reuseport.Listen("tcp", ln.Addr().String())
	if err != nil {
		fmt.Fprintln(os.Stderr, "program: reopen:", err)
		os.Exit(20)
	}
	go srv.Serve(again)
	time.Sleep(100 * time.Millisecond) // both are there for a moment
	ln.Close()
}

// work is a master's: it starts workers until it is told to stop.
func (c programConfig) work() error {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	if os.Getenv("WORKER_OF") != "" {
		c.Workers = 0
		return c.serve()
	}
	var workers sync.WaitGroup
	for range c.Workers {
		workers.Go(func() {
			for ctx.Err() == nil {
				cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
				cmd.Env = append(os.Environ(), "WORKER_OF=1")
				cmd.Stderr = os.Stderr
				if err := cmd.Start(); err != nil {
					return
				}
				stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })
				cmd.Wait()
				stop()
			}
		})
	}
	workers.Wait()
	return nil
}

// datagrams are the sockets of UDP.
var datagrams []*net.UDPConn

func (c programConfig) bindDatagrams() error {
	for _, addr := range c.UDP {
		lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
			if !c.Reuses {
				return nil
			}
			return errors.Join(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }), err)
		}}
		pc, err := lc.ListenPacket(context.Background(), "udp", addr)
		if err != nil {
			return err
		}
		datagrams = append(datagrams, pc.(*net.UDPConn))
	}
	return nil
}

// shared says of each UDP socket whether it shares its port.
func shared(w http.ResponseWriter, _ *http.Request) {
	for _, c := range datagrams {
		if raw, err := c.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) {
				on, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT)
				fmt.Fprintln(w, on, err)
			})
		}
	}
}

func (c programConfig) handler() http.Handler {
	mux := http.NewServeMux()
	well := time.Now().Add(time.Second)
	mux.HandleFunc("/shared", shared)
	new(ports).handle(mux)
	generation := os.Getenv("OVERLAP_GENERATION")
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Overlap-Generation", generation)
		if c.Fail == "late" && time.Now().Before(well) {
			http.Error(w, "a client came before it was healthy", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintf(w, "pid %d\n", os.Getpid())
	})
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) {
		switch c.Fail {
		case "late":
			if time.Now().Before(well) {
				http.Error(w, "not yet", http.StatusServiceUnavailable)
			}
		case "unhealthy":
			http.Error(w, "the database is gone", http.StatusServiceUnavailable)
		case "crash in check":
			os.Exit(8)
		case "hang":
			<-r.Context().Done()
		}
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(200 * time.Millisecond)
		w.Write([]byte("slow"))
	})
	mux.HandleFunc("/crash", func(http.ResponseWriter, *http.Request) { os.Exit(9) })
	mux.HandleFunc("/end", func(http.ResponseWriter, *http.Request) { os.Exit(0) })
	mux.HandleFunc("/terminated", func(http.ResponseWriter, *http.Request) {
		signal.Reset(syscall.SIGTERM)
		syscall.Kill(os.Getpid(), syscall.SIGTERM)
		select {}
	})
	mux.HandleFunc("/later", func(w http.ResponseWriter, r *http.Request) {
		lc := net.ListenConfig{}
		if c.Share {
			lc.Control = reuseport.Control
			lc.SetMultipathTCP(false)
		}
		ln, err := lc.Listen(context.Background(), "tcp", c.Later)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		go http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Later", "true")
			mux.ServeHTTP(w, r)
		}))
	})
	return mux
}

// echoes sends datagrams back, each after a time.
type echoes struct {
	delay time.Duration
	owed  sync.WaitGroup
}

func (d *echoes) serve(pc net.PacketConn) error {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return err
		}
		answer := fmt.Appendf(bytes.Clone(buf[:n]), "\n%s: %s", bench.GenerationHeader, os.Getenv("OVERLAP_GENERATION"))
		d.owed.Go(func() {
			time.Sleep(d.delay)
			if _, err := pc.WriteTo(answer, from); err != nil {
				fmt.Fprintln(os.Stderr, "program: answer:", err)
			}
		})
	}
}

func (d *echoes) drain(context.Context) error {
	d.owed.Wait()
	return nil
}

// goProgram has the service launch the test binary as a program.
func (s *service) goProgram(c programConfig) {
	s.t.Helper()
	s.next(c)
	exe := s.exe
	if c.Kind != "guest" && c.Kind != "udp guest" && s.uid < 0 {
		exe = plainExecutable()
	}
	s.c.Command = []string{exe, "program", s.programFile()}
}

// plainExecutable is the test binary without the race detector, with which each of a program's many starts takes several
// times as long, and which has nothing to find in one that knows nothing of overlap.
var plainExecutable = sync.OnceValue(func() string {
	own, err := os.Executable()
	if err != nil || !raceDetector {
		return own
	}
	dir, err := os.MkdirTemp("", "overlap")
	if err != nil {
		return own
	}
	plainDirectory = dir
	exe := filepath.Join(dir, "program")
	if out, err := exec.Command("go", "test", "-c", "-o", exe, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "programs have the race detector too: %v: %s\n", err, out)
		return own
	}
	os.Chmod(dir, 0o755) // for those that become another user
	return exe
})

// plainDirectory is where it is, "" where nothing was built.
var plainDirectory string

func (s *service) programFile() string { return filepath.Join(s.root, "program.json") }

// next changes what the generations to come do.
func (s *service) next(c programConfig) { write(s.t, s.programFile(), c) }

// server is a kind of program that a test can launch.
type server struct {
	name string
	// clean is true where its own shutdown loses no request of keep-alive connections.
	clean bool
	// setUp has the service launch it.
	setUp func(s *service, addr string)
}

const nodeServer = `
const http = require('http');
const [host, port] = process.argv.slice(2);
http.createServer((req, res) => {
  req.resume();
  res.setHeader('Overlap-Generation', process.env.OVERLAP_GENERATION);
  res.end('hello\n');
}).listen(Number(port), host);
`

const pythonServer = `
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = b"hello\n"
        self.send_response(200)
        self.send_header("Overlap-Generation", os.environ["OVERLAP_GENERATION"])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
`

const wsgiServer = `
import os
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "6"), ("Overlap-Generation", os.environ["OVERLAP_GENERATION"])])
    return [b"hello\n"]
`

const rackServer = `
run lambda { |env| [200, {"content-type" => "text/plain", "overlap-generation" => ENV["OVERLAP_GENERATION"]}, ["hello\n"]] }
`

// javaServer asks for a backlog of its own: the class's is 50.
const javaServer = `
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.concurrent.Executors;

public class Server {
    public static void main(String[] args) throws Exception {
        byte[] body = "hello\n".getBytes();
        String generation = System.getenv("OVERLAP_GENERATION");
        HttpServer server = HttpServer.create(new InetSocketAddress(args[0], Integer.parseInt(args[1])), 1024);
        server.createContext("/", exchange -> {
            exchange.getRequestBody().readAllBytes();
            exchange.getResponseHeaders().set("Overlap-Generation", generation);
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.setExecutor(Executors.newCachedThreadPool());
        server.start();
    }
}
`

func goServer(kind string) func(*service, string) {
	return func(s *service, addr string) {
		s.goProgram(programConfig{Kind: kind, Listen: []string{addr}})
		if kind == "guest" {
			s.c.Probes = []string{"notify"}
		}
	}
}

// script writes a file of the service and returns its path.
func (s *service) script(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.root, name)
	writeFile(s.t, path, []byte(text))
	return path
}

func splitAddress(t testing.TB, addr string) (host, port string) {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return host, port
}

func nginx(options string, workers int) func(*service, string) {
	return func(s *service, addr string) {
		path := tool(s.t, "nginx", "nginx-light")
		user := ""
		if os.Geteuid() == 0 {
			user = "user root;\n" // its directories are the test's
		}
		conf := s.script("nginx.conf", fmt.Sprintf(`
%sdaemon off;
worker_processes %d;
pid %[3]s/nginx.pid;
error_log stderr;
events { worker_connections 512; }
http {
  access_log off;
  client_body_temp_path %[3]s/body;
  proxy_temp_path %[3]s/proxy;
  fastcgi_temp_path %[3]s/fastcgi;
  uwsgi_temp_path %[3]s/uwsgi;
  scgi_temp_path %[3]s/scgi;
  server { listen %[4]s %[5]s; location / { return 200 "hello\n"; } }
}
`, user, workers, s.root, addr, options))
		s.c.Command = []string{path, "-p", s.root, "-e", "stderr", "-c", conf}
	}
}

// puma is Ruby's server, without a configuration of the machine's.
func puma(flags ...string) func(*service, string) {
	return func(s *service, addr string) {
		path := tool(s.t, "puma", "puma")
		s.c.Command = append(append([]string{path, "--config", "-", "--environment", "none", "--silent",
			"--bind", "tcp://" + addr}, flags...), s.script("config.ru", rackServer))
	}
}

func servers() []server {
	return []server{
		{"go plain", false, goServer("plain")},
		{"go polite", false, goServer("polite")},
		{"go guest", true, goServer("guest")},
		{"node", false, func(s *service, addr string) {
			host, port := splitAddress(s.t, addr)
			s.c.Command = []string{tool(s.t, "node", "nodejs"), s.script("server.js", nodeServer), host, port}
		}},
		{"python", false, func(s *service, addr string) {
			host, port := splitAddress(s.t, addr)
			s.c.Command = []string{tool(s.t, "python3", "python3"), s.script("server.py", pythonServer), host, port}
		}},
		{"nginx", false, nginx("", 1)},
		{"nginx reuseport", false, nginx("reuseport", 3)},
		{"gunicorn", false, func(s *service, addr string) {
			path := tool(s.t, "gunicorn", "gunicorn")
			s.script("wsgi.py", wsgiServer)
			s.c.Command = []string{path, "--workers", "2", "--threads", "8", "--bind", addr,
				"--chdir", s.root, "wsgi:app"}
		}},
		{"puma", false, puma("--threads", "8:8")},
		{"puma cluster", false, puma("--threads", "4:4", "--workers", "2")},
		{"java", false, func(s *service, addr string) {
			tool(s.t, "javac", "default-jdk-headless") // java alone has no compiler
			host, port := splitAddress(s.t, addr)
			s.c.Command = []string{tool(s.t, "java", "default-jdk-headless"), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC",
				s.script("Server.java", javaServer), host, port}
		}},
	}
}

// waitFor is how long a test waits for what must come.
const waitFor = 60 * time.Second
