package test

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"overlap/lifecycle/bench"
)

// The servers that are adopted, and started anew: unmodified, and without any idea of overlap.
const (
	pythonServer = `import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"%d\n" % os.getpid()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
    allow_reuse_address = len(sys.argv) < 3
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
`
	nodeServer = `require("http").createServer((q, a) => a.end(process.pid + "\n")).listen(+process.argv[2], "127.0.0.1")
`
)

// TestAdopt: a busy server that was started without overlap hands over to one that was, and no
// new connection fails; from there on it is a service like any other.
func TestAdopt(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("handovers need Linux")
	}
	for name, command := range map[string]func(p *place, port string) []string{
		"Go": func(_ *place, port string) []string {
			return []string{"fixture", "--listen", "127.0.0.1:" + port}
		},
		"Python": func(p *place, port string) []string {
			p.write("server.py", pythonServer)
			return []string{tool(p.t, "python3", "python3"), "server.py", port}
		},
		"Node": func(p *place, port string) []string {
			p.write("server.js", nodeServer)
			return []string{tool(p.t, "node", "nodejs"), "server.js", port}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			port := freePort(t)
			words := command(p, port)
			old := p.start("old", words...)
			p.listens(port)
			first := ""
			under(t, "127.0.0.1:"+port, func() {
				first = p.answer(port)
				next := p.start("launcher", append([]string{"overlap", "run", "--name", "web", "--stop-delay", "200ms",
					"--adopt", fmt.Sprint(old.cmd.Process.Pid), "--"}, words...)...)
				p.serves("web", 0)
				select {
				case <-old.done:
				case <-next.done:
					t.Error("the launcher ended")
				}
				p.must("overlap", "reload", "--wait", "drained")
				p.serves("web", 1)
			})
			if now := p.answer(port); first == now {
				t.Errorf("process %s answers before and after", now)
			}
			p.must("overlap", "stop")
		})
	}
}

// TestAdoptDatagrams: a server's UDP port goes with its TCP port of the same number, and else where it is declared.
// A datagram is lost where it meets the moment in which the placeholder has joined and steering has not.
func TestAdoptDatagrams(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("handovers need Linux")
	}
	for _, declared := range []bool{false, true} {
		t.Run(fmt.Sprintf("declared=%v", declared), func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			port := freePort(t)
			datagrams, flags := "127.0.0.1:"+port, []string(nil)
			if declared {
				datagrams = "127.0.0.1:" + freePort(t)
				flags = []string{"--listen", "127.0.0.1:" + port, "--listen", "udp:" + datagrams}
			}
			words := []string{"fixture", "--listen", "127.0.0.1:" + port, "--udp", datagrams}
			old := p.start("old", words...)
			p.listens(port)
			ctx, stop := context.WithCancel(context.Background())
			defer stop()
			type end struct {
				r   *bench.Result
				err error
			}
			ended := make(chan end, 1)
			go func() {
				l := bench.Load{Address: datagrams, Network: "udp", Clients: 8, Body: []byte("hello"), Timeout: time.Second, Think: time.Millisecond}
				r, err := l.Run(ctx, nil)
				ended <- end{r, err}
			}()
			p.start("launcher", append(append(append([]string{"overlap", "run", "--name", "web", "--stop-delay", "200ms",
				"--adopt", fmt.Sprint(old.cmd.Process.Pid)}, flags...), "--"), words...)...)
			p.serves("web", 0)
			<-old.done
			out := p.must("overlap", "status", "--json")
			p.must("overlap", "reload", "--wait", "drained")
			stop()
			e := <-ended
			if e.err != nil {
				t.Fatal(e.err)
			}
			t.Logf("%d datagrams, %d lost", e.r.Requests, e.r.Failed)
			if e.r.Failed > 8 || e.r.Requests < 200 {
				t.Errorf("%d of %d datagrams were lost: %v", e.r.Failed, e.r.Requests, e.r.Failures)
			}
			if !strings.Contains(out, "udp:"+datagrams) {
				t.Errorf("%s is not the service's: %s", datagrams, out)
			}
			p.must("overlap", "stop")
		})
	}
}

// TestAdoptFails: a server that was to be adopted is as before when the next one is not healthy, and can be adopted
// later.
func TestAdoptFails(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("handovers need Linux")
	}
	p := newPlace(t)
	port := freePort(t)
	words := []string{"fixture", "--listen", "127.0.0.1:" + port, "--udp", "127.0.0.1:" + port}
	old := p.start("old", words...)
	p.listens(port)
	kept, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	adopt := append([]string{"overlap", "run", "--name", "web", "--stop-delay", "200ms", "--health", "/healthz",
		"--adopt", fmt.Sprint(old.cmd.Process.Pid), "--"}, words...)
	before := p.answer(port)
	under(t, "127.0.0.1:"+port, func() {
		if out, err := p.run(append(append(adopt[:4:4], "--start-timeout", "1s"), append(adopt[4:], "--unhealthy")...)...); err == nil {
			t.Errorf("an unhealthy program took over: %s", out)
		}
	})
	if now := p.answer(port); now != before {
		t.Errorf("process %s answers, it was %s", now, before)
	}
	for number, value := range reusePorts(t, old.cmd.Process.Pid) {
		if value != 0 {
			t.Errorf("descriptor %d of the server has SO_REUSEPORT still", number)
		}
	}
	kept.Close()
	under(t, "127.0.0.1:"+port, func() {
		p.start("launcher", adopt...)
		p.serves("web", 0)
		<-old.done
	})
	p.must("overlap", "stop")
}

// TestAdoptRefused: what can't be adopted is named, with what would help, and goes on.
func TestAdoptRefused(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("handovers need Linux")
	}
	p := newPlace(t)
	port := freePort(t)
	old := p.start("mptcp", "fixture", "--listen", "127.0.0.1:"+port, "--mptcp")
	p.listens(port)
	idle := p.start("idle", "sleep", "1000")
	refused := func(pid int, want ...string) {
		t.Helper()
		out, err := p.run("overlap", "run", "--name", "web", "--adopt", fmt.Sprint(pid), "--", "fixture", "--listen", "127.0.0.1:"+port)
		if err == nil {
			t.Errorf("pid %d was adopted: %s", pid, out)
		}
		for _, text := range want {
			if !strings.Contains(out, text) {
				t.Errorf("no %q in: %s", text, out)
			}
		}
	}
	if _, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 262); err == nil {
		refused(old.cmd.Process.Pid, "overlap: error: run: adopt pid", "127.0.0.1:"+port, "MPTCP", "GODEBUG=multipathtcp=0")
	}
	refused(idle.cmd.Process.Pid, fmt.Sprintf("overlap: error: run: adopt pid %d: it does not listen on any TCP address", idle.cmd.Process.Pid))
	refused(1<<22-1, "overlap: error: run: adopt pid 4194303")
	p.answer(port)
}

// TestAdoptTimeWait: connections that the server closed hold its port for a minute where it did not
// set SO_REUSEADDR. That is waited for, and said.
func TestAdoptTimeWait(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("handovers need Linux")
	}
	p := newPlace(t)
	port := freePort(t)
	p.write("server.py", pythonServer)
	python := tool(t, "python3", "python3")
	old := p.start("old", python, "server.py", port, "without SO_REUSEADDR")
	p.listens(port)
	first := p.answer(port)
	p.closedByServer(port)
	out, err := p.run("overlap", "run", "--name", "web", "--start-timeout", "1s", "--adopt", fmt.Sprint(old.cmd.Process.Pid), "--", python, "server.py", port)
	if err == nil || !strings.Contains(out, "overlap: error: run: share 127.0.0.1:"+port+": connections in TIME_WAIT hold it") {
		t.Errorf("%v: %s", err, out)
	}
	if now := p.answer(port); now != first {
		t.Errorf("process %s answers, it was %s", now, first)
	}
}

// closedByServer makes a request and does not close before the server has: TIME_WAIT is the side's
// that closes first.
func (p *place) closedByServer(port string) {
	p.t.Helper()
	c, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		p.t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		p.t.Fatal(err)
	}
	if _, err := io.ReadAll(c); err != nil {
		p.t.Fatal(err)
	}
}

// listens waits until somebody does.
func (p *place) listens(port string) {
	p.t.Helper()
	p.until("wait for the server", func() error { _, err := answer(port); return err })
}

func (p *place) answer(port string) string {
	p.t.Helper()
	text, err := answer(port)
	if err != nil {
		p.t.Fatal(err)
	}
	return text
}
