package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"overlap/lifecycle/state"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("CONTROL_TEST_CHILD"); path != "" {
		if err := child(path, os.Getenv("CONTROL_TEST_ROLE")); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// child is an owner in a process of its own.
func child(path, role string) error {
	if role == "ask" {
		if _, err := Dial(path).Status(context.Background()); err != nil {
			return err
		}
		fmt.Println("answered")
		return nil
	}
	stopped := make(chan struct{})
	b := &backend{
		stop: func(_ context.Context, _ StopRequest, events func(Event)) {
			events(Event{Kind: KindDrained, Final: true, Outcome: &Outcome{Outcome: OutcomeStopped, From: 1}})
			close(stopped)
		},
		session: func(_ context.Context, s *Session) {
			s.Handle(echo)
			s.Start()
			<-s.Done()
		},
	}
	server, err := Serve(path, b, nil)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if role == "stop" {
		<-stopped
		return server.Close(context.Background()) // and the process exits right away
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func startChild(t *testing.T, path, role string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "CONTROL_TEST_CHILD="+path, "CONTROL_TEST_ROLE="+role)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		stdin.Close()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the owner did not start: %q, %v", line, err)
	}
	return cmd
}

type backend struct {
	status  func() (Status, error)
	reload  func(context.Context, ReloadRequest, func(Event))
	stop    func(context.Context, StopRequest, func(Event))
	session func(context.Context, *Session)
}

func (b *backend) Status(_ context.Context, connections bool) (Status, error) {
	s, err := b.status()
	s.Generations = slices.Clone(s.Generations)
	for i := range s.Generations {
		if !connections {
			s.Generations[i].Connections = 0
		}
	}
	return s, err
}
func (b *backend) Reload(ctx context.Context, r ReloadRequest, events func(Event)) {
	b.reload(ctx, r, events)
}
func (b *backend) Stop(ctx context.Context, r StopRequest, events func(Event)) {
	b.stop(ctx, r, events)
}
func (b *backend) Session(ctx context.Context, s *Session) { b.session(ctx, s) }

func echo(_ context.Context, op string, body json.RawMessage) (any, error) {
	switch op {
	case "echo":
		return body, nil
	case "nothing":
		return nil, nil
	case "huge":
		return strings.Repeat("x", maxMessage), nil
	}
	return nil, fmt.Errorf("no %s here", op)
}

// socket returns a path that is short enough everywhere.
func socket(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "control")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "1.sock")
}

func serve(t *testing.T, path string, b Backend) *Server {
	t.Helper()
	s, err := Serve(path, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeServer(t, s) })
	return s
}

func closeServer(t *testing.T, s *Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
}

func TestStatus(t *testing.T) {
	path := socket(t)
	want := Status{Service: "web", Generations: []Generation{{Generation: 2, PID: 7, State: state.Serving, Listeners: []string{"127.0.0.1:80"}, Connections: 5}}}
	var failed error
	s := serve(t, path, &backend{status: func() (Status, error) { return want, failed }})
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	got, err := Dial(path).Status(t.Context())
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%+v, %v", got, err)
	}
	brief := want
	brief.Generations = []Generation{want.Generations[0]}
	brief.Generations[0].Connections = 0
	if got, err = Dial(path).Brief(t.Context()); err != nil || fmt.Sprint(got) != fmt.Sprint(brief) {
		t.Errorf("in brief: %+v, %v", got, err)
	}
	failed = errors.New("no idea")
	var refused *StatusError
	if _, err := Dial(path).Status(t.Context()); !errors.As(err, &refused) || refused.Code != 500 || refused.Text != "no idea" {
		t.Errorf("a backend that fails: %v", err)
	}
	closeServer(t, s)
	if _, err := Dial(path).Status(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}
}

func TestReloadTellsHowItGoes(t *testing.T) {
	path := socket(t)
	var got ReloadRequest
	serve(t, path, &backend{reload: func(_ context.Context, r ReloadRequest, events func(Event)) {
		got = r
		events(Event{Kind: KindStarting, Generation: 2})
		events(Event{Kind: KindSwitched, Generation: 2, Text: strings.Repeat("x", 2*maxMessage)})
		events(Event{Kind: KindDrained, Generation: 1, Final: true, Outcome: &Outcome{Service: "web", From: 1, To: 2, Outcome: OutcomeSwitched, SwitchMS: 1.5}})
		events(Event{Kind: KindMessage, Text: "too late"})
	}})
	var kinds []string
	request := ReloadRequest{Timeout: 3 * time.Second, Wait: WaitDrained, Command: []string{"a", "b c"}, Env: []string{"A=" + strings.Repeat("e", 1<<20)}, Directory: "/d"}
	outcome, err := Dial(path).Reload(t.Context(), request, func(e Event) {
		kinds = append(kinds, e.Kind)
		if e.Time.IsZero() {
			t.Error("an event without a time")
		}
	})
	if err != nil || outcome != (Outcome{Service: "web", From: 1, To: 2, Outcome: OutcomeSwitched, SwitchMS: 1.5}) {
		t.Errorf("%+v, %v", outcome, err)
	}
	if fmt.Sprint(kinds) != "[starting switched drained]" {
		t.Errorf("events %v", kinds)
	}
	if fmt.Sprint(got) != fmt.Sprint(request) {
		t.Errorf("the request came as %+.200v", got)
	}
}

func TestBadRequests(t *testing.T) {
	path := socket(t)
	serve(t, path, &backend{})
	c := Dial(path)
	var refused *StatusError
	if _, err := c.Reload(t.Context(), ReloadRequest{Wait: "forever"}, nil); !errors.As(err, &refused) || refused.Code != 400 {
		t.Errorf("unknown wait: %v", err)
	}
	if _, err := c.Reload(t.Context(), ReloadRequest{Timeout: -1}, nil); !errors.As(err, &refused) || refused.Code != 400 {
		t.Errorf("negative timeout of a reload: %v", err)
	}
	if _, err := c.Stop(t.Context(), StopRequest{Timeout: -1}, nil); !errors.As(err, &refused) || refused.Code != 400 {
		t.Errorf("negative timeout: %v", err)
	}
	if _, err := c.Reload(t.Context(), ReloadRequest{Directory: strings.Repeat("x", maxRequest)}, nil); err == nil {
		t.Error("a request without a bound was read")
	}
	for _, r := range []struct{ method, path, body string }{
		{"POST", "/v1/reload", "{"},
		{"POST", "/v1/reload", "{} {}"},
		{"POST", "/v1/reload", `{"not_yet_known":1}`}, // who sent it would think that it is heeded
		{"GET", "/v1/reload", ""},
		{"POST", "/v1/session", ""},
		{"GET", "/", ""},
	} {
		request, err := http.NewRequest(r.method, "http://overlap"+r.path, strings.NewReader(r.body))
		if err != nil {
			t.Fatal(err)
		}
		response, err := c.http.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode < 400 || response.StatusCode >= 500 {
			t.Errorf("%v: %s", r, response.Status)
		}
	}
}

func TestWorkWithoutOutcomeFailed(t *testing.T) {
	path := socket(t)
	serve(t, path, &backend{reload: func(context.Context, ReloadRequest, func(Event)) {}})
	outcome, err := Dial(path).Reload(t.Context(), ReloadRequest{}, nil)
	if err != nil || outcome.Outcome != OutcomeFailed || outcome.Reason == "" {
		t.Errorf("%+v, %v", outcome, err)
	}
}

func TestWorkGoesOnWithoutTheClient(t *testing.T) {
	path := socket(t)
	begun, left, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	s := serve(t, path, &backend{reload: func(ctx context.Context, _ ReloadRequest, events func(Event)) {
		close(begun)
		<-left
		for range 2000 { // far more than the socket holds
			events(Event{Kind: KindMessage, Text: strings.Repeat("x", 1000)})
		}
		events(Event{Final: true, Outcome: &Outcome{}})
		done <- ctx.Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begun; cancel() }()
	if _, err := Dial(path).Reload(ctx, ReloadRequest{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("who stopped watching: %v", err)
	}
	close(left)
	if err := <-done; err != nil {
		t.Errorf("the work was cancelled: %v", err)
	}
	closeServer(t, s)
}

// A client that is stopped, or says nothing, holds up neither the work nor the end.
func TestSilentClients(t *testing.T) {
	path := socket(t)
	done := make(chan struct{})
	s := serve(t, path, &backend{
		reload: func(_ context.Context, _ ReloadRequest, events func(Event)) {
			for range 2000 {
				events(Event{Kind: KindMessage, Text: strings.Repeat("x", 1000)})
			}
			close(done)
		},
		status: func() (Status, error) { return Status{}, nil },
	})
	for _, says := range []string{"", "GET /v1/st", "POST /v1/reload HTTP/1.1\r\nHost: o\r\nContent-Length: 5\r\n\r\n{"} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, says)
	}
	// One answer later the server has accepted those before.
	if _, err := Dial(path).Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	closeServer(t, s)
	t.Logf("closed in %v", time.Since(begin))

	path = socket(t)
	s = serve(t, path, s.backend)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "POST /v1/reload HTTP/1.1\r\nHost: o\r\nContent-Length: 0\r\n\r\n")
	<-done
	closeServer(t, s)
}

func TestCloseWaitsForAnswersUpToTheContext(t *testing.T) {
	path := socket(t)
	begun, release := make(chan struct{}), make(chan struct{})
	s := serve(t, path, &backend{reload: func(ctx context.Context, _ ReloadRequest, events func(Event)) {
		close(begun)
		<-release
		events(Event{Final: true, Outcome: &Outcome{Outcome: OutcomeSwitched}})
	}})
	type result struct {
		Outcome
		error
	}
	got := make(chan result, 1)
	go func() {
		o, err := Dial(path).Reload(context.Background(), ReloadRequest{}, nil)
		got <- result{o, err}
	}()
	<-begun
	closed := make(chan error, 1)
	go func() { closed <- s.Close(context.Background()) }()
	waitFor(t, func() bool { _, err := os.Stat(path); return errors.Is(err, fs.ErrNotExist) })
	select {
	case err := <-closed:
		t.Fatalf("closed while an answer ran: %v", err)
	default:
	}
	close(release)
	if r := <-got; r.error != nil || r.Outcome.Outcome != OutcomeSwitched {
		t.Errorf("the running answer: %+v", r)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

func TestCloseCutsWhatTheContextDoesNotAllow(t *testing.T) {
	path := socket(t)
	begun := make(chan struct{})
	cancelled := make(chan struct{})
	s := serve(t, path, &backend{reload: func(ctx context.Context, _ ReloadRequest, events func(Event)) {
		close(begun)
		<-ctx.Done()
		close(cancelled)
	}})
	got := make(chan error, 1)
	go func() {
		// Either way is right: the end of the work, or that of the connection.
		outcome, err := Dial(path).Reload(context.Background(), ReloadRequest{}, nil)
		if err == nil && outcome.Outcome == OutcomeFailed {
			err = ErrNoOutcome
		}
		got <- err
	}()
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("close: %v", err)
	}
	<-cancelled
	if err := <-got; !errors.Is(err, ErrNoOutcome) {
		t.Errorf("the answer that was cut: %v", err)
	}
}

// The owner exits right after the last event, and the event is not lost.
func TestLastEventBeforeExit(t *testing.T) {
	for range 5 {
		path := socket(t)
		cmd := startChild(t, path, "stop")
		outcome, err := Dial(path).Stop(t.Context(), StopRequest{}, nil)
		if err != nil || outcome.Outcome != OutcomeStopped {
			t.Errorf("%+v, %v", outcome, err)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket stayed: %v", err)
		}
	}
}

func TestStaleAndLivingSockets(t *testing.T) {
	path := socket(t)
	cmd := startChild(t, path, "")
	if _, err := Serve(path, &backend{}, nil); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a socket that another serves: %v", err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if _, err := Dial(path).Status(t.Context()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a dead owner: %v", err)
	}
	serve(t, path, &backend{status: func() (Status, error) { return Status{}, nil }})
	if _, err := Dial(path).Status(t.Context()); err != nil {
		t.Error(err)
	}
	file := filepath.Join(filepath.Dir(path), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Serve(file, &backend{}, nil); err == nil {
		t.Error("a plain file was replaced")
	}
}

func TestWhoIsAllowed(t *testing.T) {
	for uid, want := range map[int]bool{0: true, os.Geteuid(): true, 65534: os.Geteuid() == 65534, -1: false} {
		if allowed(uid) != want {
			t.Errorf("uid %d: allowed %v", uid, !want)
		}
	}
}

// waitFor polls, where there is no event to wait for.
func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited 10 s in vain")
		}
	}
}

// sessions opens a session; handle is the server's handler, or the client's.
func sessions(t *testing.T, server, client func(context.Context, string, json.RawMessage) (any, error)) (theirs, ours *Session) {
	t.Helper()
	path := socket(t)
	got := make(chan *Session, 1)
	serve(t, path, &backend{session: func(_ context.Context, s *Session) {
		s.Handle(server)
		s.Start()
		got <- s
		<-s.Done()
	}})
	ours, err := Dial(path).Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close() })
	ours.Handle(client)
	ours.Start()
	return <-got, ours
}

// Who listens is known before anything is asked.
func TestOnlyTheUserIsAsked(t *testing.T) {
	path := socket(t)
	var asked atomic.Int32
	serve(t, path, &backend{
		status:  func() (Status, error) { asked.Add(1); return Status{}, nil },
		session: func(_ context.Context, s *Session) { asked.Add(1) },
	})
	wrong := DialUser(path, os.Geteuid()+1)
	_, status := wrong.Status(t.Context())
	_, session := wrong.Session(t.Context())
	for _, err := range []error{status, session} {
		if !errors.Is(err, fs.ErrPermission) {
			t.Errorf("another user's socket: %v", err)
		}
	}
	if n := asked.Load(); n > 0 {
		t.Errorf("another user's was asked %d times", n)
	}
	if _, err := DialUser(path, os.Geteuid()).Status(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSessionBothWays(t *testing.T) {
	var theirs, ours *Session
	back := func(ctx context.Context, op string, body json.RawMessage) (any, error) {
		if op != "back" {
			return echo(ctx, op, body)
		}
		var out string // a handler may ask in its turn
		err := theirs.Call(ctx, "echo", "from the handler", &out)
		return out, err
	}
	ready := make(chan struct{})
	theirs, ours = sessions(t, func(ctx context.Context, op string, body json.RawMessage) (any, error) {
		<-ready
		return back(ctx, op, body)
	}, echo)
	close(ready)
	for _, s := range []*Session{theirs, ours} {
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				var out int
				if err := s.Call(t.Context(), "echo", i, &out); err != nil || out != i {
					t.Errorf("%d came back as %d, %v", i, out, err)
				}
			})
		}
		wg.Wait()
		var remote *RemoteError
		if err := s.Call(t.Context(), "bread", nil, nil); !errors.As(err, &remote) || remote.Text != "no bread here" {
			t.Errorf("a handler that fails: %v", err)
		}
		if err := s.Call(t.Context(), "nothing", nil, new(int)); err != nil {
			t.Error(err)
		}
		if err := s.Call(t.Context(), "echo", strings.Repeat("x", maxMessage), nil); !errors.Is(err, ErrTooLarge) {
			t.Errorf("a call that is too long: %v", err)
		}
		if err := s.Call(t.Context(), "huge", nil, nil); !errors.As(err, &remote) || remote.Text != ErrTooLarge.Error() {
			t.Errorf("an answer that is too long: %v", err)
		}
		big := strings.Repeat("x", maxMessage-100)
		if err := s.Call(t.Context(), "echo", big, new(string)); err != nil {
			t.Errorf("a call that just fits: %v", err)
		}
	}
	var out string
	if err := ours.Call(t.Context(), "back", nil, &out); err != nil || out != "from the handler" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestSessionRequestsComeInOrderOneAtATime(t *testing.T) {
	var inside atomic.Int32
	var order []int
	_, ours := sessions(t, func(_ context.Context, _ string, body json.RawMessage) (any, error) {
		if inside.Add(1) != 1 {
			t.Error("two requests at a time")
		}
		defer inside.Add(-1)
		var n int
		err := json.Unmarshal(body, &n)
		order = append(order, n)
		return len(order), err
	}, nil)
	cancelled, cancel := context.WithCancel(t.Context())
	for i := range 20 {
		// Sent without waiting for the answer, so several wait over there.
		if err := ours.send(t.Context(), Message{ID: uint64(1000 + i), Op: "n", Body: json.RawMessage(fmt.Sprint(i))}); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := ours.Call(cancelled, "n", 99, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that was given up: %v", err)
	}
	var count int
	if err := ours.Call(t.Context(), "n", 20, &count); err != nil || count != 21 {
		t.Fatalf("%d, %v", count, err)
	}
	for i, n := range order {
		if i != n {
			t.Fatalf("order %v", order)
		}
	}
}

func TestSessionBreaks(t *testing.T) {
	hang := make(chan struct{})
	entered := make(chan struct{}, 1)
	slow := func(ctx context.Context, _ string, _ json.RawMessage) (any, error) {
		entered <- struct{}{}
		<-ctx.Done()
		close(hang)
		return nil, ctx.Err()
	}
	theirs, ours := sessions(t, slow, nil)
	answered := make(chan error, 1)
	go func() { answered <- ours.Call(context.Background(), "slow", nil, nil) }()
	<-entered
	if theirs.Err() != nil || ours.Err() != nil {
		t.Error("broken too early")
	}
	theirs.Close()
	<-hang // the handler's context ended
	<-ours.Done()
	if err := <-answered; !errors.Is(err, io.EOF) {
		t.Errorf("the call that waited: %v", err)
	}
	if !errors.Is(theirs.Err(), os.ErrClosed) || !errors.Is(ours.Err(), io.EOF) {
		t.Errorf("%v, %v", theirs.Err(), ours.Err())
	}
	if err := ours.Call(t.Context(), "more", nil, nil); err == nil {
		t.Error("a call on a broken session")
	}
}

func TestSessionNotStarted(t *testing.T) {
	path := socket(t)
	serve(t, path, &backend{session: func(_ context.Context, s *Session) {}})
	s, err := Dial(path).Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Call(t.Context(), "echo", nil, nil); err == nil {
		t.Error("called without Start")
	}
	s.Start()
	<-s.Done() // the backend returned
	s.Close()
	s.Close()
}

func TestSessionGarbage(t *testing.T) {
	for name, line := range map[string]string{"no json": "hello\n", "no end": strings.Repeat("x", 2*maxMessage)} {
		theirs, ours := sessions(t, echo, nil)
		ours.conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(ours.conn, line)
		<-theirs.Done()
		if theirs.Err() == nil || errors.Is(theirs.Err(), io.EOF) {
			t.Errorf("%s: %v", name, theirs.Err())
		}
	}
}

// The proof of life: the other process is killed, and the session says so.
func TestSessionEndsWithTheProcess(t *testing.T) {
	path := socket(t)
	cmd := startChild(t, path, "")
	s, err := Dial(path).Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Start()
	var out int
	if err := s.Call(t.Context(), "echo", 7, &out); err != nil || out != 7 {
		t.Fatal(err)
	}
	cmd.Process.Kill()
	<-s.Done()
	if !errors.Is(s.Err(), io.EOF) {
		t.Error(s.Err())
	}
}

func TestServerCloseEndsSessions(t *testing.T) {
	path := socket(t)
	s := serve(t, path, &backend{session: func(ctx context.Context, s *Session) {
		s.Start()
		<-s.Done()
	}})
	session, err := Dial(path).Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	session.Start()
	closeServer(t, s)
	<-session.Done()
}

func TestSessionOpeningIsCancelled(t *testing.T) {
	path := socket(t)
	ln, err := net.Listen("unix", path) // accepts nobody
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	if _, err := Dial(path).Session(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if _, err := Dial(path).Status(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func FuzzReadLine(f *testing.F) {
	f.Add("{}\n{}\n")
	f.Add("{\"id\":1")
	f.Fuzz(func(t *testing.T, in string) {
		r := bufio.NewReader(strings.NewReader(in))
		rest := in
		for {
			line, err := readLine(r)
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, ErrTooLarge) {
					t.Fatal(err)
				}
				return
			}
			if !strings.HasPrefix(rest, string(line)+"\n") {
				t.Fatalf("line %q of %q", line, rest)
			}
			rest = rest[len(line)+1:]
		}
	})
}

// An owner that is stopped reads nothing; who asks it is held up no longer than wanted.
func TestSessionWithSomebodyWhoDoesNotRead(t *testing.T) {
	path := socket(t)
	serve(t, path, &backend{session: func(ctx context.Context, s *Session) { <-ctx.Done() }})
	s, err := Dial(path).Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Start()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := s.Call(ctx, "echo", strings.Repeat("x", maxMessage/2), nil); err == nil {
				t.Error("answered by nobody")
			}
		})
	}
	wg.Wait()
}
