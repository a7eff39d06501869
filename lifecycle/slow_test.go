package lifecycle_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"overlap/lifecycle/state"
)

// startWith starts the first generation and makes sure that it serves.
func startWith(t *testing.T, c config) (*service, *proc, state.Record) {
	t.Helper()
	s := newService(t, c)
	p := s.start()
	return s, p, s.serving(0)
}

// connected waits until a generation has n client connections.
func (s *service) connected(generation, n int) {
	s.t.Helper()
	eventually(s.t, func() error {
		status, err := s.status(generation)
		if err == nil && status.Connections != n {
			err = fmt.Errorf("%d connections, want %d", status.Connections, n)
		}
		return err
	})
}

// TestSlow: handlers and request bodies that take seconds, across a handover, are finished by
// the generation that began them.
func TestSlow(t *testing.T) {
	needLinux(t)
	t.Parallel()
	s, old, first := startWith(t, config{Listen: []string{"tcp 127.0.0.1:0"}, Probe: "/healthz", Grace: 100 * time.Millisecond})
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	client := http.Client{Transport: tr, Timeout: 60 * time.Second}
	url := "http://" + s.address(0) + "/echo"
	ask := func(url string, body io.Reader, size int) {
		resp, err := client.Post(url, "text/plain", body)
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		if want := fmt.Sprintf(`{"bytes":%d,"pid":%d,"generation":1}`, size, first.Owner.PID); err != nil || string(answer) != want {
			t.Errorf("%q, %v; want %s", answer, err, want)
		}
	}
	const each = 4
	var all sync.WaitGroup
	var bodies []*io.PipeWriter
	for range each {
		all.Go(func() { ask(url+"?delay=10s", strings.NewReader("slow"), 4) })
		read, write := io.Pipe()
		bodies = append(bodies, write)
		all.Go(func() { ask(url, read, 6) })
	}
	for _, b := range bodies {
		io.WriteString(b, "a")
	}
	s.connected(first.Generation, 2*each)
	s.mustReload()
	s.mustAsk(2)
	for range 5 {
		time.Sleep(700 * time.Millisecond) // the sender is slow, that is the test
		for _, b := range bodies {
			io.WriteString(b, "b")
		}
	}
	for _, b := range bodies {
		b.Close()
	}
	all.Wait()
	if code := old.code(t); code != 0 {
		t.Errorf("exit code %d of the old generation", code)
	}
}

// conversation is a client of /talk.
type conversation struct {
	net.Conn
	r *bufio.Reader
}

func (s *service) talk() *conversation {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.address(0))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(60 * time.Second))
	fmt.Fprintf(conn, "GET /talk HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: talk\r\n\r\n")
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		s.t.Fatalf("%+v, %v", resp, err)
	}
	return &conversation{conn, r}
}

func (c *conversation) mustHear(t *testing.T, want string) {
	t.Helper()
	if line, err := c.r.ReadString('\n'); err != nil || line != want {
		t.Errorf("heard %q, %v; want %q", line, err, want)
	}
}

// TestHijacked: a connection that was taken over from HTTP is told of the drain, served on, and
// waited for.
func TestHijacked(t *testing.T) {
	needLinux(t)
	t.Parallel()
	s, old, _ := startWith(t, config{Listen: []string{"tcp 127.0.0.1:0"}, Grace: 100 * time.Millisecond})
	c := s.talk()
	fmt.Fprintln(c, "one")
	c.mustHear(t, "one\n")
	s.mustReload()
	c.mustHear(t, "drain\n")
	s.mustAsk(2)
	fmt.Fprintln(c, "two")
	c.mustHear(t, "two\n")
	select {
	case <-old.done:
		t.Error("the old generation did not wait for the connection")
	default:
	}
	c.Close()
	if code := old.code(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if out := s.output(); !strings.Contains(out, "report: cut=0 hijacked=1\n") {
		t.Error("the report does not count the connection")
	}
}

// TestCut: at the drain time-out what is left is cut and counted, and the exit code says so.
func TestCut(t *testing.T) {
	needLinux(t)
	t.Parallel()
	s, old, first := startWith(t, config{Listen: []string{"tcp 127.0.0.1:0"}, Grace: 100 * time.Millisecond, Drain: time.Second})
	c := s.talk()
	failed := s.slowRequest()
	s.connected(first.Generation, 2)
	s.mustReload()
	c.mustHear(t, "drain\n")
	if code := old.code(t); code != exitCut {
		t.Errorf("exit code %d, want that of ErrCut, %d", code, exitCut)
	}
	if err := <-failed; err == nil {
		t.Error("the slow request was answered")
	}
	if out := s.output(); !strings.Contains(out, "report: cut=2 hijacked=1\n") {
		t.Error("the report does not say that two were cut")
	}
	s.mustAsk(2)
}

// TestSecondSignal: a second SIGTERM cuts, the first one waits.
func TestSecondSignal(t *testing.T) {
	needLinux(t)
	t.Parallel()
	s, old, first := startWith(t, config{Listen: []string{"tcp 127.0.0.1:0"}, Grace: 100 * time.Millisecond})
	failed := s.slowRequest()
	s.connected(first.Generation, 1)
	began := time.Now()
	old.cmd.Process.Signal(syscall.SIGTERM)
	s.signalAgain(old)
	if code := old.code(t); code != exitCut {
		t.Errorf("exit code %d, want that of ErrCut, %d", code, exitCut)
	}
	if err := <-failed; err == nil {
		t.Error("the slow request was answered")
	}
	if took := time.Since(began); took < 250*time.Millisecond {
		t.Errorf("the first signal cut, after %s", took)
	}
}

// signalAgain sends a second signal to stop, once the first has been heard. One that follows
// another within 200 ms counts as the same.
func (s *service) signalAgain(p *proc) {
	s.t.Helper()
	eventually(s.t, func() error {
		if !strings.Contains(s.output(), "signal=terminated") {
			return errors.New("the first signal was not heard")
		}
		return nil
	})
	time.Sleep(300 * time.Millisecond)
	p.cmd.Process.Signal(syscall.SIGTERM)
}

// slowRequest makes a request that takes a minute, and delivers how it ended.
func (s *service) slowRequest() <-chan error {
	ended := make(chan error, 1)
	go func() {
		tr := &http.Transport{DisableKeepAlives: true}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr}).Get("http://" + s.address(0) + "/echo?delay=60s")
		if err == nil {
			resp.Body.Close()
		}
		ended <- err
	}()
	return ended
}
