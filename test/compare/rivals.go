package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"

	"overlap/test/compare/internal/serve"
)

// managed are variables by which a service manager or launcher speaks to what it starts.
var managed = regexp.MustCompile(`^(NOTIFY_SOCKET|LISTEN_\w+|WATCHDOG_\w+|INVOCATION_ID|MAINPID|SERVER_STARTER_\w+|COMPARE_\w+|OVERLAP_\w+)=`)

// rival is one way of replacing a running server.
type rival struct {
	key, title string
	how        string // it is reloaded, in words
	handler    string // what answers: latencies and rates compare only among the same
	ours       bool   // it is overlap
	// missing returns why it can't be measured here, and what would mend that; "" if it can.
	missing func(*bed) string
	// start starts the first generation and returns how to go on.
	start func(*bed) (reloader, error)
}

// reloader starts the next generation, whose name is in the bed already. It returns when that has
// been told; or, if it has to do something once the new one serves, then: seen is closed as soon
// as an answer of the new one was seen.
type reloader func(seen <-chan struct{}) error

// rivals are in the order of the table. The first is what the others are compared with.
var rivals = []rival{
	{key: "reuseport", title: "go-reuseport and Shutdown", handler: goHandler,
		how:   "the second process is started by hand; SIGTERM to the first once the second has answered",
		start: startPair},
	{key: "migrate", title: "the same, tcp_migrate_req=1", handler: goHandler,
		how:     "as before, with the sysctl net.ipv4.tcp_migrate_req set",
		missing: missingSysctl,
		start: func(b *bed) (reloader, error) {
			if err := os.WriteFile(migrateSysctl, []byte("1\n"), 0o644); err != nil {
				return nil, fmt.Errorf("set net.ipv4.tcp_migrate_req: %w", err)
			}
			return startPair(b)
		}},
	{key: "fdpass", title: "socket passed to a child", handler: goHandler,
		how:   "SIGHUP: the server starts a child with the listening socket (ExtraFiles), which sends SIGTERM to its parent once it can serve; Shutdown",
		start: func(b *bed) (reloader, error) { return b.hangupServing(b.server(serve.FDPass)) }},
	{key: "holding", title: "socket held, as systemd does", handler: goHandler,
		how:   "a holder keeps the listening socket; reload is a restart: SIGTERM, Shutdown, and after its end the next on the same socket (LISTEN_FDS)",
		start: func(b *bed) (reloader, error) { return b.signalled(syscall.SIGHUP, b.server(serve.Holder)) }},
	{key: "starter", title: "Server::Starter", handler: goHandler,
		how:     "SIGHUP to start_server, which starts the next one on the same socket and a second later (its default) sends SIGTERM to the old one; Shutdown",
		missing: needs("start_server", "apt-get install libserver-starter-perl"),
		start: func(b *bed) (reloader, error) {
			return b.signalled(syscall.SIGHUP, append([]string{look("start_server"), "--port=" + b.address, "--"}, b.server(serve.Starter)...))
		}},
	{key: "nginx", title: "nginx", handler: "nginx",
		how:     "SIGHUP to the master, with a new configuration; nginx answers by itself, two workers",
		missing: needs("nginx", "apt-get install nginx-light"),
		start:   func(b *bed) (reloader, error) { return startNginx(b, "") }},
	{key: "nginx-reuseport", title: "nginx, listen … reuseport", handler: "nginx",
		how:     "as before, with a listening socket for each worker",
		missing: needs("nginx", "apt-get install nginx-light"),
		start:   func(b *bed) (reloader, error) { return startNginx(b, " reuseport") }},
	{key: "haproxy", title: "HAProxy, master-worker", handler: "HAProxy",
		how:     "SIGUSR2 to the master (-W), with a new configuration; HAProxy answers by itself",
		missing: needs("haproxy", "apt-get install haproxy"),
		start:   startHAProxy},
	{key: "node", title: "Node cluster", handler: "Node",
		how:     "SIGHUP to the primary, which forks new workers, and when they listen tells the old ones to close and disconnects them",
		missing: needs("node", "apt-get install nodejs"),
		start:   startNode},
	{key: "library", title: "overlap, the library", handler: goHandler, ours: true,
		how:   "SIGHUP to the serving process",
		start: func(b *bed) (reloader, error) { return b.hangupServing(b.server(serve.Library)) }},
	{key: "run", title: "overlap run, a server that knows nothing of it", handler: goHandler, ours: true,
		how:     "SIGHUP to the launcher; --stop-delay 1s: what connections get to end by themselves before Shutdown (the default, 5 s, would only let keep-alive clients wait longer for it)",
		missing: missingLauncher,
		start: func(b *bed) (reloader, error) {
			return b.signalled(syscall.SIGHUP, append(b.launcher("--stop-delay", "1s"), b.server(serve.Plain)...))
		}},
	{key: "run-library", title: "overlap run, a server with the library", handler: goHandler, ours: true,
		how:     "SIGHUP to the launcher",
		missing: missingLauncher,
		start: func(b *bed) (reloader, error) {
			return b.signalled(syscall.SIGHUP, append(b.launcher(), b.server(serve.Library)...))
		}},
	{key: "run-nginx", title: "overlap run, nginx", handler: "nginx", ours: true,
		how:     "SIGHUP to the launcher, with a new configuration for the next nginx, which is another master with two workers; --stop-signal QUIT, --stop-delay 1s",
		missing: firstOf(missingLauncher, needs("nginx", "apt-get install nginx-light")),
		start: func(b *bed) (reloader, error) {
			return b.configured(nginxConfig(b, ""), syscall.SIGHUP, func(path string) []string {
				return append(b.launcher("--stop-signal", "QUIT", "--stop-delay", "1s"), nginxCommand(b, path)...)
			})
		}},
	{key: "run-node", title: "overlap run, Node", handler: "Node", ours: true,
		how:     "SIGHUP to the launcher, which starts the same program of a primary and its workers again; SIGTERM ends it as the reload of Node's cluster ends old workers; --stop-delay 1s",
		missing: firstOf(missingLauncher, needs("node", "apt-get install nodejs")),
		start: func(b *bed) (reloader, error) {
			command, err := nodeCommand(b)
			if err != nil {
				return nil, err
			}
			return b.signalled(syscall.SIGHUP, append(b.launcher("--stop-delay", "1s"), command...))
		}},
}

// goHandler is served by the program of this comparison.
const goHandler = "Go"

// absent are rivals that nobody here measures, and why.
var absent = []string{
	"pm2: Debian has no package of it, and it reloads Node's cluster, which is measured",
	"systemd itself: a namespace of its own has no service manager; the holder does what its socket activation does",
}

const migrateSysctl = "/proc/sys/net/ipv4/tcp_migrate_req"

func missingSysctl(b *bed) string {
	if !b.ownNetwork {
		return "the sysctl is the whole machine's here: run as root, for a network namespace of its own"
	}
	f, err := os.OpenFile(migrateSysctl, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Sprintf("%v (needs Linux 5.14 and a writable /proc/sys)", err)
	}
	f.Close()
	return ""
}

// look finds a program, also where the PATH of an ordinary user has no sbin.
func look(name string) string {
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin", "/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p
		}
	}
	return ""
}

func needs(program, install string) func(*bed) string {
	return func(*bed) string {
		if look(program) == "" {
			return program + " is not installed: " + install
		}
		return ""
	}
}

// firstOf returns why the first of several things is missing.
func firstOf(all ...func(*bed) string) func(*bed) string {
	return func(b *bed) string {
		for _, missing := range all {
			if why := missing(b); why != "" {
				return why
			}
		}
		return ""
	}
}

// missingLauncher asks the binary itself whether it can run programs.
func missingLauncher(b *bed) string {
	if b.overlap == "" {
		return "no overlap binary was built"
	}
	out, err := exec.Command(b.overlap, "run", "--help").CombinedOutput()
	if err != nil {
		line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return fmt.Sprintf("this overlap has no command run (%v): %s", err, line)
	}
	return ""
}

func (b *bed) server(mode string) []string {
	return append(b.program[:len(b.program):len(b.program)],
		"-mode", mode, "-listen", b.address, "-generation", b.generationFile(), "-state-dir", filepath.Join(b.dir, "state"))
}

func (b *bed) launcher(flags ...string) []string {
	args := []string{b.overlap, "--state-dir", filepath.Join(b.dir, "state"), "--log-level", "warn", "run", "--name", "compare"}
	return append(append(args, flags...), "--")
}

// signalled starts a program that is reloaded by a signal to itself.
func (b *bed) signalled(s syscall.Signal, args []string) (reloader, error) {
	pid, err := b.keeper.start(args, b.env...)
	if err != nil {
		return nil, err
	}
	return func(<-chan struct{}) error { return send(pid, s) }, nil
}

// hangupServing starts a program that is reloaded by SIGHUP to the process that serves.
func (b *bed) hangupServing(args []string) (reloader, error) {
	if _, err := b.keeper.start(args, b.env...); err != nil {
		return nil, err
	}
	return func(<-chan struct{}) error { return send(int(b.serving.Load()), syscall.SIGHUP) }, nil
}

func send(pid int, s syscall.Signal) error {
	if pid <= 1 {
		return fmt.Errorf("send %v: the serving process is not known", s)
	}
	if err := syscall.Kill(pid, s); err != nil {
		return fmt.Errorf("send %v to process %d: %w", s, pid, err)
	}
	return nil
}

// startPair is the tutorial: the second process is started, then the first is stopped.
func startPair(b *bed) (reloader, error) {
	args := b.server(serve.Reuseport)
	old, err := b.keeper.start(args, b.env...)
	if err != nil {
		return nil, err
	}
	return func(seen <-chan struct{}) error {
		next, err := b.keeper.start(args, b.env...)
		if err != nil {
			return err
		}
		select {
		case <-seen:
		case <-b.ctx.Done():
			return b.ctx.Err()
		}
		err = send(old, syscall.SIGTERM)
		old = next
		return err
	}, nil
}

// configured starts a program whose answers come from its configuration, which is written anew for
// each generation.
func (b *bed) configured(config func() string, s syscall.Signal, args func(path string) []string) (reloader, error) {
	path := filepath.Join(b.dir, "config")
	write := func() error { return replace(path, config()) }
	if err := write(); err != nil {
		return nil, err
	}
	pid, err := b.keeper.start(args(path), b.env...)
	if err != nil {
		return nil, err
	}
	b.prepare = write
	return func(<-chan struct{}) error { return send(pid, s) }, nil
}

// workers is how many a rival gets that has processes for its parallelism: as many as the Go
// servers have threads that run.
func workers() int { return runtime.NumCPU() }

func startNginx(b *bed, option string) (reloader, error) {
	return b.configured(nginxConfig(b, option), syscall.SIGHUP, func(path string) []string { return nginxCommand(b, path) })
}

func nginxCommand(b *bed, path string) []string {
	return []string{look("nginx"), "-p", b.dir, "-e", "stderr", "-c", path}
}

// nginxConfig is nginx's configuration for the generation that is next.
func nginxConfig(b *bed, option string) func() string {
	return func() string {
		return fmt.Sprintf(`daemon off;
worker_processes %d;
pid %[2]s/pid;
error_log stderr warn;
events { worker_connections 4096; }
http {
	access_log off;
	client_body_temp_path %[2]s/body;
	proxy_temp_path %[2]s/proxy;
	fastcgi_temp_path %[2]s/fastcgi;
	uwsgi_temp_path %[2]s/uwsgi;
	scgi_temp_path %[2]s/scgi;
	default_type text/plain;
	server {
		listen %[3]s%[4]s;
		location / {
			add_header %[5]s %[6]s;
			return 200 %[7]q;
		}
	}
}
`, workers(), b.dir, b.address, option, serve.GenerationHeader, b.generation, serve.Body)
	}
}

func startHAProxy(b *bed) (reloader, error) {
	config := func() string {
		return fmt.Sprintf(`defaults
	mode http
	timeout client 30s
	timeout http-request 30s
	timeout http-keep-alive 30s
frontend compare
	bind %s
	http-request return status 200 content-type text/plain string %q hdr %s %s
`, b.address, serve.Body, serve.GenerationHeader, b.generation)
	}
	return b.configured(config, syscall.SIGUSR2, func(path string) []string {
		return []string{look("haproxy"), "-W", "-f", path}
	})
}

// nodeProgram replaces its workers one for one, as Node's documentation of the module cluster
// shows: fork, wait for listening, tell the old one to finish, disconnect. It announces the end to
// keep-alive clients, as careful servers do. SIGTERM ends it in the same way.
const nodeProgram = `'use strict';
const cluster = require('node:cluster'), http = require('node:http'), fs = require('node:fs');
const [host, port, file, count, header, body] = process.argv.slice(2);
if (cluster.isPrimary) {
  let serving = [];
  const reload = () => {
    const next = [];
    let listening = 0;
    for (let i = 0; i < +count; i++) {
      const worker = cluster.fork();
      next.push(worker);
      worker.once('listening', () => {
        if (++listening < +count) return;
        const old = serving;
        serving = next;
        for (const w of old) { w.send('shutdown'); w.disconnect(); }
      });
    }
  };
  process.on('SIGHUP', reload);
  process.on('SIGTERM', () => { for (const w of serving) { w.send('shutdown'); w.disconnect(); } });
  reload();
} else {
  const generation = fs.readFileSync(file, 'utf8').trim();
  let closing = false;
  const server = http.createServer((req, res) => {
    const headers = {'Content-Type': 'text/plain', 'Content-Length': body.length, [header]: generation};
    if (closing) headers.Connection = 'close';
    res.writeHead(200, headers);
    res.end(body);
  });
  server.listen(+port, host);
  process.on('message', (m) => { if (m === 'shutdown') { closing = true; server.close(); } });
}
`

func startNode(b *bed) (reloader, error) {
	command, err := nodeCommand(b)
	if err != nil {
		return nil, err
	}
	return b.signalled(syscall.SIGHUP, command)
}

func nodeCommand(b *bed) ([]string, error) {
	path := filepath.Join(b.dir, "cluster.js")
	if err := os.WriteFile(path, []byte(nodeProgram), 0o644); err != nil {
		return nil, err
	}
	host, port, _ := strings.Cut(b.address, ":")
	return []string{look("node"), path, host, port, b.generationFile(),
		fmt.Sprint(workers()), serve.GenerationHeader, serve.Body}, nil
}

// replace writes a file so that a reader sees the old or the new one.
func replace(path, text string) error {
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
