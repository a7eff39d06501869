package lifecycle_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"overlap/health"
	"overlap/lifecycle"
	"overlap/lifecycle/control"
	"overlap/lifecycle/internal/trial"
	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
	"overlap/reuse"
	"overlap/test/netns"
)

// envChild names the configuration of a test server: the test binary itself is the server.
const envChild = "OVERLAP_TEST_SERVER"

var handovers = flag.Int("handovers", 20, "how many handovers a loss test makes")

// ownNetwork is true where the tests have a network namespace of their own, so that they may
// filter packets.
var ownNetwork bool

func TestMain(m *testing.M) {
	if path := os.Getenv(envChild); path != "" {
		os.Exit(serveChild(path))
	}
	ownNetwork = os.Getenv("OVERLAP_TEST_NETNS") != ""
	netns.Enter()
	flag.Parse()
	// Tests that run in parallel mostly wait; the default is the number of CPUs.
	flag.Set("test.parallel", "8")
	goleak.VerifyTestMain(m)
}

// config is what a test server does; each generation reads it anew from a file.
type config struct {
	Name, Root string
	Listen     []string // "tcp 127.0.0.1:80", "unix /path", "udp 127.0.0.1:53"
	Sockets    int
	Separate   bool   // a server for each listener
	Fail       string // see serveChild
	KillAt     string // a step of the handover at which the process kills itself
	Probe      string
	Drain      time.Duration
	Grace      time.Duration
	Start      time.Duration
	Delay      time.Duration // ShutdownDelay

	AcceptDelay time.Duration // makes the accept queue long
	AnswerDelay time.Duration // between a datagram and its echo
	DeferAccept int           // seconds
	WaitFor     string        // a file that must be there before it is ready

	SteeringOff, ProofOff, AnnounceOff bool
}

// serveChild is the main function of a test server.
func serveChild(path string) int {
	data, err := os.ReadFile(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var c config
	if err := json.Unmarshal(data, &c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if c.SteeringOff {
		reuse.Unsteered()
	}
	trial.ProofOff, trial.AnnounceOff = c.ProofOff, c.AnnounceOff
	if c.KillAt != "" {
		trial.Step = func(name string) {
			if name == c.KillAt {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}
	}
	if err := c.serve(); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		return exitCode(err)
	}
	return 0
}

// The exit codes of a test server tell the errors that a caller may branch on.
const (
	exitFailed = iota + 20
	exitUnhealthy
	exitBusy
	exitStranger
	exitOverlap
	exitCut
)

func exitCode(err error) int {
	for code, kind := range map[int]error{exitUnhealthy: lifecycle.ErrUnhealthy, exitBusy: lifecycle.ErrBusy,
		exitStranger: lifecycle.ErrStranger, exitOverlap: lifecycle.ErrOverlap, exitCut: lifecycle.ErrCut} {
		if errors.Is(err, kind) {
			return code
		}
	}
	return exitFailed
}

func (c config) serve() error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var drains atomic.Bool
	o := lifecycle.Options{Name: c.Name, StateDir: c.Root, Logger: log, DrainTimeout: c.Drain,
		IdleGrace: c.Grace, StartTimeout: c.Start, ShutdownDelay: c.Delay,
		OnDrain:    func() { drains.Store(true) },
		AfterDrain: func(r lifecycle.Report) { fmt.Fprintf(os.Stderr, "report: cut=%d hijacked=%d\n", r.Cut, r.Hijacked) }}
	if c.Probe != "" {
		spec, err := health.Parse(c.Probe, health.Options{})
		if err != nil {
			return err
		}
		o.Probes = []health.Spec{spec}
	}
	if c.WaitFor != "" {
		o.BeforeReady = func() error {
			for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
				if _, err := os.Stat(c.WaitFor); err == nil {
					return nil
				}
			}
			return fmt.Errorf("%s never came", c.WaitFor)
		}
	}
	switch c.Fail {
	case "crash before":
		os.Exit(7)
	case "before ready":
		o.BeforeReady = func() error { return fmt.Errorf("no luck") }
	}
	g, err := lifecycle.New(o)
	if err != nil {
		return err
	}
	defer g.Close()
	var lns []net.Listener
	for _, l := range c.Listen {
		network, addr, _ := strings.Cut(l, " ")
		for range max(c.Sockets, 1) {
			if network == "udp" {
				pc, err := g.ListenPacket(context.Background(), network, addr)
				if err != nil {
					return err
				}
				e := echoes{delay: c.AnswerDelay}
				g.ServePacket(pc, e.serve, e.drain)
				continue
			}
			ln, err := g.Listen(context.Background(), network, addr)
			if err != nil {
				return err
			}
			if err := deferAccept(ln, c.DeferAccept); err != nil {
				return err
			}
			lns = append(lns, slowListener{ln, c.AcceptDelay})
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			return
		}
		if d, err := time.ParseDuration(r.URL.Query().Get("delay")); err == nil {
			time.Sleep(d)
		}
		w.Header().Set("Overlap-Generation", strconv.Itoa(g.Number()))
		fmt.Fprintf(w, `{"bytes":%d,"pid":%d,"generation":%d}`, n, os.Getpid(), g.Number())
	})
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) {
		switch c.Fail {
		case "unhealthy":
			http.Error(w, "the database is gone", http.StatusServiceUnavailable)
		case "crash in check":
			os.Exit(8)
		case "hang":
			<-r.Context().Done()
		default:
			g.Readiness().ServeHTTP(w, r)
		}
	})
	mux.HandleFunc("/same", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "the same for all generations\n") })
	mux.HandleFunc("/talk", func(w http.ResponseWriter, r *http.Request) { talk(w, g) })
	switch {
	case c.Fail == "server fails":
		g.Serve(lns[0], func(net.Listener) error { return fmt.Errorf("out of order") }, nil)
	case c.Separate:
		for _, ln := range lns {
			g.HTTP(&http.Server{Handler: mux}, ln)
		}
	default:
		g.HTTP(&http.Server{Handler: mux}, lns...)
	}
	err = g.Run(context.Background())
	select {
	case <-g.Draining():
		if !drains.Load() {
			return fmt.Errorf("OnDrain was not called: %w", err)
		}
	default:
	}
	return err
}

// talk is a conversation as WebSockets have it: each line is answered, "drain" is said when the
// generation ends, and the client closes.
func talk(w http.ResponseWriter, g *lifecycle.Generation) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	var mu sync.Mutex
	say := func(line string) {
		mu.Lock()
		defer mu.Unlock()
		rw.WriteString(line)
		rw.Flush()
	}
	say("HTTP/1.1 101 Switching Protocols\r\nUpgrade: talk\r\nConnection: Upgrade\r\n\r\n")
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-g.Draining():
			say("drain\n")
		case <-over:
		}
	}()
	for {
		line, err := rw.ReadString('\n')
		if err != nil {
			return
		}
		say(line)
	}
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
		answer := bytes.Clone(buf[:n])
		d.owed.Go(func() {
			time.Sleep(d.delay)
			if _, err := pc.WriteTo(answer, from); err != nil {
				fmt.Fprintln(os.Stderr, "server: answer:", err)
			}
		})
	}
}

func (d *echoes) drain(context.Context) error {
	d.owed.Wait()
	return nil
}

// slowListener takes its time before each accept.
type slowListener struct {
	net.Listener
	delay time.Duration
}

func (l slowListener) Accept() (net.Conn, error) {
	time.Sleep(l.delay)
	return l.Listener.Accept()
}

// service is a service of test servers.
type service struct {
	t    testing.TB
	c    config
	file string
	dir  *state.Dir

	procs []*proc
	// out is a file, not a pipe: a process's end does not wait for those that it started.
	out *os.File
}

// proc is a test server that a test started by hand.
type proc struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

func (s *service) output() string {
	out, err := os.ReadFile(s.out.Name())
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// makeRoot makes a state directory: a test's on the disk, whatever may run there, a benchmark's in
// memory, as a service has it.
func makeRoot(t testing.TB) (string, error) {
	if _, ok := t.(*testing.B); ok {
		return state.MkdirTemp("overlap")
	}
	return os.MkdirTemp("", "overlap")
}

// newService makes a service on free ports of the addresses ("tcp 127.0.0.1:0").
func newService(t testing.TB, c config) *service {
	t.Helper()
	root, err := makeRoot(t)
	if err != nil {
		t.Fatal(err)
	}
	if c.Name == "" {
		c.Name = "web"
	}
	c.Root = root
	for i, l := range c.Listen {
		c.Listen[i] = freeAddress(t, l)
	}
	s := &service{t: t, c: c, file: filepath.Join(root, "config.json")}
	s.write(c)
	if s.out, err = os.OpenFile(filepath.Join(root, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		t.Fatal(err)
	}
	if s.dir, err = state.Open(root, c.Name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.clean)
	return s
}

func freeAddress(t testing.TB, l string) string {
	network, addr, _ := strings.Cut(l, " ")
	if !strings.HasSuffix(addr, ":0") {
		return l
	}
	if network == "udp" {
		pc, err := net.ListenPacket(network, addr)
		if err != nil {
			t.Skipf("no %s here: %v", l, err)
		}
		defer pc.Close()
		return fmt.Sprintf("%s %s%d", network, strings.TrimSuffix(addr, "0"), pc.LocalAddr().(*net.UDPAddr).Port)
	}
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Skipf("no %s here: %v", l, err)
	}
	defer ln.Close()
	return fmt.Sprintf("%s %s%d", network, strings.TrimSuffix(addr, "0"), ln.Addr().(*net.TCPAddr).Port)
}

func (s *service) write(c config) {
	data, err := json.Marshal(c)
	if err != nil {
		s.t.Fatal(err)
	}
	tmp := s.file + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(tmp, s.file); err != nil {
		s.t.Fatal(err)
	}
}

// next changes what the generations to come do.
func (s *service) next(change func(*config)) {
	c := s.c
	change(&c)
	s.write(c)
}

// clean ends every process of the service, by its pid, and shows what was logged when the test failed.
func (s *service) clean() {
	for _, err := range s.stop() {
		s.t.Error(err)
	}
	records, _ := s.dir.Generations()
	for _, r := range records {
		if r.Owner.Alive() {
			s.t.Errorf("generation %d was still there", r.Generation)
			syscall.Kill(r.Owner.PID, syscall.SIGKILL)
		}
	}
	for _, p := range s.procs {
		select {
		case <-p.done:
		case <-time.After(30 * time.Second):
			s.t.Errorf("pid %d did not end", p.cmd.Process.Pid)
			p.cmd.Process.Kill()
			<-p.done
		}
	}
	s.dir.Close()
	defer os.RemoveAll(s.c.Root)
	defer s.out.Close()
	if s.t.Failed() {
		out := s.output()
		if len(out) > 8000 {
			out = "…" + out[len(out)-8000:]
		}
		s.t.Logf("servers:\n%s", out)
	}
}

// stop ends all generations and waits until they are gone.
func (s *service) stop() (errs []error) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	records, _ := s.dir.Generations()
	for _, r := range records {
		h, err := process.Open(r.Owner)
		if err != nil {
			continue
		}
		h.Signal(syscall.SIGTERM)
		if err := h.Wait(ctx); err != nil {
			h.Signal(syscall.SIGKILL)
			errs = append(errs, fmt.Errorf("generation %d did not end: %w", r.Generation, err))
		}
		h.Close()
	}
	return errs
}

// start starts a generation by hand.
func (s *service) start() *proc {
	s.t.Helper()
	cmd := exec.Command(os.Args[0])
	// The race detector would make each exit a second longer.
	cmd.Env = append(os.Environ(), envChild+"="+s.file, "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=0")
	cmd.Stdout, cmd.Stderr = s.out, s.out
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	p := &proc{cmd: cmd, done: make(chan struct{})}
	go func() { p.err = cmd.Wait(); close(p.done) }()
	s.procs = append(s.procs, p)
	return p
}

// code waits for the end and returns the exit code.
func (p *proc) code(t testing.TB) int {
	t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(60 * time.Second):
		t.Fatal("the process did not end")
		return -1
	}
}

// serving waits until a generation newer than after serves and returns its record.
func (s *service) serving(after int) state.Record {
	s.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		records, _ := s.dir.Generations()
		for _, r := range records {
			if r.State == state.Serving && r.Generation > after && s.dir.Owned(r.Generation) {
				return r
			}
		}
	}
	s.t.Fatalf("no generation after %d serves\n%s", after, s.output())
	return state.Record{}
}

// reload asks the generation that serves for the next one.
func (s *service) reload() control.Outcome {
	s.t.Helper()
	out, err := s.tryReload()
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

func (s *service) tryReload() (control.Outcome, error) {
	s.t.Helper()
	r := s.serving(0)
	ctx, cancel := context.WithTimeout(context.Background(), 120*time.Second)
	defer cancel()
	return control.Dial(s.dir.SocketPath(r.Generation)).Reload(ctx, control.ReloadRequest{}, nil)
}

// status asks a generation what it is.
func (s *service) status(generation int) (control.Generation, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	status, err := control.Dial(s.dir.SocketPath(generation)).Status(ctx)
	if err != nil {
		return control.Generation{}, err
	}
	return status.Generations[0], nil
}

func (s *service) mustReload() {
	s.t.Helper()
	if out := s.reload(); out.Outcome != control.OutcomeSwitched {
		s.t.Fatalf("reload: %+v\n%s", out, s.output())
	}
}

// address is the i-th address to connect to.
func (s *service) address(i int) string { return s.local(s.c.Listen[i]) }

// local is an address of a config as one to connect to.
func (s *service) local(l string) string {
	network, addr, _ := strings.Cut(l, " ")
	a, err := reuse.ParseAddress(context.Background(), network, addr)
	if err != nil {
		s.t.Fatal(err)
	}
	return a.Local().String()
}

// ask makes one request and returns the generation that answered.
func (s *service) ask() (int, error) { return s.askAt(s.address(0)) }

func (s *service) askAt(addr string) (int, error) {
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	c := http.Client{Transport: tr, Timeout: 20 * time.Second}
	resp, err := c.Post("http://"+addr+"/echo", "text/plain", strings.NewReader("x"))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return strconv.Atoi(resp.Header.Get("Overlap-Generation"))
}

func (s *service) mustAsk(want int) {
	s.t.Helper()
	if n, err := s.ask(); err != nil || n != want {
		s.t.Fatalf("generation %d answered, %v; want %d\n%s", n, err, want, s.output())
	}
}

// missing skips a test that lacks something, and fails it where everything must be there.
func missing(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("OVERLAP_TEST_REQUIRE") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}
