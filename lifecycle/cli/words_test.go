package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"

	"overlap/lifecycle"
	"overlap/lifecycle/control"
	"overlap/lifecycle/launcher"
	"overlap/lifecycle/owner"
	"overlap/lifecycle/state"
	"overlap/reuse"
)

func TestExplain(t *testing.T) {
	serve := func(err error) error { return &failure{"serve", "serve", err} }
	run := func(err error) error {
		return &failure{doingRun, "web", &launcher.ExitError{Code: launcher.ExitOwnFailure, Err: err}}
	}
	bind := func(err error) error {
		return &net.OpError{Op: "listen", Net: "tcp", Addr: &net.TCPAddr{Port: 80}, Err: os.NewSyscallError("bind", err)}
	}
	for _, test := range []struct {
		err  error
		code int
		want string // all of stderr
	}{
		{serve(&owner.StrangerError{Stranger: reuse.Stranger{Network: "tcp", Address: netip.MustParseAddrPort("127.0.0.1:80"), PID: 7, Command: "nginx -g x"}}), ExitFailed,
			"overlap: error: serve: 127.0.0.1:80 is in use by pid 7 (nginx -g x), which is not of this service\n" +
				"overlap: hint: listen elsewhere, or end that process first: overlap serve --listen :8081\n"},
		{serve(fmt.Errorf("%w: a and b of generation 1", lifecycle.ErrOverlap)), ExitFailed,
			"overlap: error: serve: address overlaps one of the running generation: a and b of generation 1\n" +
				"overlap: hint: listen on the same address, or end the service first: overlap stop serve\n"},
		{serve(fmt.Errorf("%w: \"x\"", lifecycle.ErrOther)), ExitFailed,
			"overlap: error: serve: a service of this name runs on other addresses: \"x\"\n" +
				"overlap: hint: give the new service a name of its own: overlap serve --name OTHER\n"},
		{&failure{doingRun, "web", &launcher.ExitError{Code: 1, Err: launcher.ErrOldLauncher}}, ExitFailed,
			"overlap: error: run: the running launcher is of an older version that takes a command, but no flags\n" +
				"overlap: hint: give it the command alone: overlap reload web -- COMMAND\n"},
		{serve(lifecycle.ErrSupervised), ExitFailed,
			"overlap: error: serve: the running generation is supervised and must not exit\n" +
				"overlap: hint: have it replace itself: overlap reload serve\n"},
		{serve(fmt.Errorf("%w, held by pid 7", lifecycle.ErrBusy)), ExitFailed,
			"overlap: error: serve: another handover is on its way, held by pid 7\n" +
				"overlap: hint: see how far the other one is: overlap status serve\n"},
		{serve(owner.ErrBusy), ExitFailed,
			"overlap: error: serve: another handover is under way\n" +
				"overlap: hint: see how far the other one is: overlap status serve\n"},
		{serve(fmt.Errorf("%w: tcp: refused", lifecycle.ErrUnhealthy)), ExitFailed,
			"overlap: error: serve: unhealthy: tcp: refused\n" +
				"overlap: hint: an old generation serves on, if there was one: overlap status serve\n"},
		{serve(fmt.Errorf("drain: 3 connections: %w", lifecycle.ErrCut)), ExitFailed,
			"overlap: error: serve: drain: 3 connections: " + lifecycle.ErrCut.Error() + "\n" +
				"overlap: hint: give connections more time: overlap serve --drain-timeout 60s\n"},
		{serve(fmt.Errorf("/run/overlap/serve/1.json: %w", state.ErrRecord)), ExitFailed,
			"overlap: error: serve: /run/overlap/serve/1.json: record cannot be used\n" +
				"overlap: hint: a record is only needed while its generation runs: overlap status serve\n"},
		{serve(bind(syscall.EACCES)), ExitFailed,
			"overlap: error: serve: listen tcp :80: bind: permission denied\n" +
				"overlap: hint: ports below 1024 are for root or CAP_NET_BIND_SERVICE, take another: overlap serve --listen :8080\n"},
		{serve(bind(syscall.EADDRINUSE)), ExitFailed,
			"overlap: error: serve: listen tcp :80: bind: address already in use\n" +
				"overlap: hint: see who listens: ss -ltnp\n"},
		{serve(fmt.Errorf("/srv/my state can be written by others (mode 0770): %w", fs.ErrPermission)), ExitFailed,
			"overlap: error: serve: /srv/my state can be written by others (mode 0770): permission denied\n" +
				"overlap: hint: take that right away: chmod go-w '/srv/my state'\n"},
		{serve(fmt.Errorf("/srv/s belongs to root, not to me: %w", fs.ErrPermission)), ExitFailed,
			"overlap: error: serve: /srv/s belongs to root, not to me: permission denied\n" +
				"overlap: hint: keep state elsewhere: overlap --state-dir \"$HOME/.overlap\" serve\n"},
		{serve(errors.New("two\nlines\n")), ExitFailed, "overlap: error: serve: two; lines\n"},

		{run(&owner.StrangerError{Stranger: reuse.Stranger{Network: "tcp", Address: netip.MustParseAddrPort("127.0.0.1:80"), PID: 7, Command: "nginx -g x"}}), launcher.ExitOwnFailure,
			"overlap: error: run: 127.0.0.1:80 is in use by pid 7 (nginx -g x), which is not of this service\n" +
				"overlap: hint: listen elsewhere, or end that process first: ss -ltnp\n"},
		{run(fmt.Errorf("%w: in use", launcher.ErrNotShared)), launcher.ExitOwnFailure,
			"overlap: error: run: " + launcher.ErrNotShared.Error() + ": in use\n" +
				"overlap: hint: start it so that it does, and leave that to it: overlap run --reuse off -- COMMAND\n"},
		{&failure{doingRun, "web", &aloneError{&launcher.ExitError{Code: launcher.ExitOwnFailure, Err: launcher.ErrNotShared}}}, launcher.ExitOwnFailure,
			"overlap: error: run: " + launcher.ErrNotShared.Error() + "\n" +
				"overlap: hint: turn the option on in the program, or have overlap do it: overlap run --reuse auto -- COMMAND\n"},
		{run(fmt.Errorf("whether it listens could not be seen: %w", launcher.ErrUnseen)), launcher.ExitOwnFailure,
			"overlap: error: run: whether it listens could not be seen: " + launcher.ErrUnseen.Error() + "\n" +
				"overlap: hint: give overlap that access, or start the container as that user (--user): docker run --cap-add SYS_PTRACE IMAGE\n"},
		{run(fmt.Errorf("%w: \"x\"", lifecycle.ErrOther)), launcher.ExitOwnFailure,
			"overlap: error: run: a service of this name runs on other addresses: \"x\"\n" +
				"overlap: hint: give the new service a name of its own: overlap run --name OTHER -- COMMAND\n"},
		{run(bind(syscall.EACCES)), launcher.ExitOwnFailure,
			"overlap: error: run: listen tcp :80: bind: permission denied\n" +
				"overlap: hint: ports below 1024 are for root or CAP_NET_BIND_SERVICE, see who you are: id\n"},
		{run(fmt.Errorf("/srv/s belongs to root, not to me: %w", fs.ErrPermission)), launcher.ExitOwnFailure,
			"overlap: error: run: /srv/s belongs to root, not to me: permission denied\n" +
				"overlap: hint: keep state elsewhere: overlap --state-dir \"$HOME/.overlap\" run -- COMMAND\n"},

		{&failure{"status", "", fmt.Errorf("no service: %w", errNotRunning)}, ExitNotRunning,
			"overlap: error: status: no service: not running\noverlap: hint: start a file server: overlap serve\n"},
		{&failure{"stop", "web", fmt.Errorf("web: %w", errNotRunning)}, ExitNotRunning,
			"overlap: error: stop: web: not running\noverlap: hint: see what runs: overlap status\n"},
		{&failure{"reload", "", &ambiguousError{command: "reload", choices: []string{"a", "b"}}}, ExitUsage,
			"overlap: error: reload: several services run: a, b\noverlap: hint: name one of them: overlap reload a\n"},
		{&failure{"reload", "a", &ambiguousError{command: "reload", name: "a", choices: []string{"/x", "/y"}}}, ExitUsage,
			"overlap: error: reload: several services are called a, in /x, /y\noverlap: hint: name its state directory: overlap --state-dir /x reload a\n"},
		{&failure{"reload web", "web", &reloadError{"unhealthy: x"}}, ExitFailed,
			"overlap: error: reload web: unhealthy: x\noverlap: hint: the old generation serves on, see it with: overlap status web\n"},
		{&failure{"reload web", "web", errUnwatched}, ExitFailed,
			"overlap: error: reload web: no longer watched, the handover goes on\noverlap: hint: see how far it is: overlap status web\n"},
		{&failure{"reload web", "web", control.ErrNoOutcome}, ExitFailed,
			"overlap: error: reload web: the owner went away before it told the outcome\noverlap: hint: see what there is: overlap status web\n"},
		{&failure{"reload web", "web", errNotServing}, ExitFailed,
			"overlap: error: reload web: no generation serves\noverlap: hint: see what there is: overlap status web\n"},
		{&failure{"reload web", "web", fmt.Errorf("generation 1 (pid 7): %w", errNoAnswer)}, ExitFailed,
			"overlap: error: reload web: generation 1 (pid 7): does not answer\noverlap: hint: end it, its connections too: overlap stop web\n"},
		{&failure{"reload web", "web", fmt.Errorf("generation 1 (pid 7): %w", errNoLauncher)}, ExitFailed,
			"overlap: error: reload web: generation 1 (pid 7): its launcher is dead\noverlap: hint: take over from its program: overlap run --name web -- COMMAND\n"},
		{&failure{"stop web", "web", fmt.Errorf("generation 1 (pid 7): %w", errStillThere)}, ExitFailed,
			"overlap: error: stop web: generation 1 (pid 7): still there\noverlap: hint: see what is left: overlap status web\n"},
		{&failure{"bench", "", fmt.Errorf("%w: 3 of 9 requests failed", errLoss)}, ExitFailed,
			"overlap: error: bench: clients noticed: 3 of 9 requests failed\n"},
		{&failure{"bench", "", fmt.Errorf("%w: 3 of 9 requests failed", errReadiness)}, ExitFailed,
			"overlap: error: bench: clients noticed status 503 and nothing else: 3 of 9 requests failed\n" +
				"overlap: hint: a path that tells readiness says 503 while a generation drains, ask for another: overlap bench --path /\n"},
		{&usageError{"unknown flag --x", "see the flags: overlap help serve"}, ExitUsage,
			"overlap: error: unknown flag --x\noverlap: hint: see the flags: overlap help serve\n"},
	} {
		var stderr bytes.Buffer
		p := &program{stderr: &stderr}
		if code := p.complain(test.err); code != test.code || stderr.String() != test.want {
			t.Errorf("%v: code %d, want %d\n got:\n%swant:\n%s", test.err, code, test.code, &stderr, test.want)
		}
	}
}

func TestUsageWords(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"relaod", "overlap: error: unknown command \"relaod\"\noverlap: hint: did you mean: overlap reload\n"},
		{"qqq", "overlap: error: unknown command \"qqq\"\noverlap: hint: see the commands: overlap help\n"},
		{"--lgo-level x", "overlap: error: unknown flag --lgo-level\noverlap: hint: did you mean: overlap --log-level\n"},
		{"serve --tls-crt x", "overlap: error: unknown flag --tls-crt\noverlap: hint: did you mean: overlap serve --tls-cert\n"},
		{"serve --qqq", "overlap: error: unknown flag --qqq\noverlap: hint: see the flags: overlap help serve\n"},
		{"serve --delay x", "overlap: error: invalid value \"x\" for flag --delay: parse error\noverlap: hint: see the flags: overlap help serve\n"},
		{"serve --delay", "overlap: error: flag needs a value: --delay\noverlap: hint: see the flags: overlap help serve\n"},
		{"serve x", "overlap: error: serve: unexpected argument \"x\"\noverlap: hint: see its usage: overlap help serve\n"},
		{"serve --idle-grace -1s", "overlap: error: invalid value \"-1s\" for flag --idle-grace (or $OVERLAP_IDLE_GRACE): want 0 or more\noverlap: hint: see the flags: overlap help serve\n"},
		{"bench --mode x", "overlap: error: invalid value \"x\" for flag --mode (or $OVERLAP_BENCH_MODE): want close, keepalive or both\noverlap: hint: see the flags: overlap help bench\n"},
		{"bench --udp --path /x", "overlap: error: bench: --udp and --path exclude each other\noverlap: hint: see its usage: overlap help bench\n"},
		{"bench --name a -- b", "overlap: error: bench: --name and a command exclude each other\noverlap: hint: see its usage: overlap help bench\n"},
		{"bench --path x", "overlap: error: invalid value \"x\" for flag --path (or $OVERLAP_BENCH_PATH): want a path that begins with / and has no blanks\noverlap: hint: see the flags: overlap help bench\n"},
		{"bench --method G/T", "overlap: error: invalid value \"G/T\" for flag --method (or $OVERLAP_BENCH_METHOD): want one word, such as GET\noverlap: hint: see the flags: overlap help bench\n"},
		{"bench --rate -1", "overlap: error: invalid value \"-1\" for flag --rate (or $OVERLAP_BENCH_RATE): want 0 to 1e+09\noverlap: hint: see the flags: overlap help bench\n"},
		{"bench --rate nan", "overlap: error: invalid value \"NaN\" for flag --rate (or $OVERLAP_BENCH_RATE): want 0 to 1e+09\noverlap: hint: see the flags: overlap help bench\n"},
		{"bench --rate inf", "overlap: error: invalid value \"+Inf\" for flag --rate (or $OVERLAP_BENCH_RATE): want 0 to 1e+09\noverlap: hint: see the flags: overlap help bench\n"},
		{"bench --listen :0 -- x", "overlap: error: invalid value \":0\" for flag --listen (or $OVERLAP_BENCH_LISTEN): want the port that the program listens on, not 0\noverlap: hint: see the flags: overlap help bench\n"},
		{"serve --listen :65536", "overlap: error: invalid value \":65536\" for flag --listen (or $OVERLAP_LISTEN): want a port from 1 to 65535, or 0 for any\noverlap: hint: see the flags: overlap help serve\n"},
		{"serve --name A", "overlap: error: invalid value \"A\" for flag --name (or $OVERLAP_NAME): service name \"A\" does not begin with a-z or 0-9\noverlap: hint: see the flags: overlap help serve\n"},
		{"run --name A -- x", "overlap: error: invalid value \"A\" for flag --name (or $OVERLAP_RUN_NAME): service name \"A\" does not begin with a-z or 0-9\noverlap: hint: see the flags: overlap help run\n"},
		{"run --listen :80,:65536 -- x", "overlap: error: invalid value \":65536\" for flag --listen (or $OVERLAP_RUN_LISTEN): want a port from 1 to 65535\noverlap: hint: see the flags: overlap help run\n"},
		{"run --listen udp::0 -- x", "overlap: error: invalid value \"udp::0\" for flag --listen (or $OVERLAP_RUN_LISTEN): want the port that the program listens on, not 0\noverlap: hint: see the flags: overlap help run\n"},
		{"run --listen unix:/x -- x", "overlap: error: invalid value \"unix:/x\" for flag --listen (or $OVERLAP_RUN_LISTEN): want host:port or udp:host:port\noverlap: hint: see the flags: overlap help run\n"},
		{"run --pass-signal HUP,KILL -- x", "overlap: error: invalid value \"KILL\" for flag --pass-signal (or $OVERLAP_RUN_PASS_SIGNAL): no process can receive this signal\noverlap: hint: see the flags: overlap help run\n"},
		{"run --pass-signal TERM -- x", "overlap: error: invalid value \"TERM\" for flag --pass-signal (or $OVERLAP_RUN_PASS_SIGNAL): this signal stops the service; the program gets the one of --stop-signal\noverlap: hint: see the flags: overlap help run\n"},
		{"run --pass-signal CHLD -- x", "overlap: error: invalid value \"CHLD\" for flag --pass-signal (or $OVERLAP_RUN_PASS_SIGNAL): this signal tells overlap itself that a process has ended\noverlap: hint: see the flags: overlap help run\n"},
		{"run --health none --health tcp -- x", "overlap: error: run: --health none and other probes exclude each other\noverlap: hint: see its usage: overlap help run\n"},
		{"run --health tcp://:x -- x", "overlap: error: invalid value \"tcp://:x\" for flag --health (or $OVERLAP_RUN_HEALTH): invalid port \":x\" after host\noverlap: hint: see the flags: overlap help run\n"},
		{"run --health exec:no-such-command -- x", "overlap: error: invalid value \"exec:no-such-command\" for flag --health (or $OVERLAP_RUN_HEALTH): find command: exec: \"no-such-command\": executable file not found in $PATH\noverlap: hint: see the flags: overlap help run\n"},
		{"run --health-ca /no-such-file -- x", "overlap: error: invalid value \"/no-such-file\" for flag --health-ca (or $OVERLAP_RUN_HEALTH_CA): read CA file of health checks: open /no-such-file: no such file or directory\noverlap: hint: see the flags: overlap help run\n"},
		{"run --health-ca x --health-insecure -- x", "overlap: error: run: --health-ca and --health-insecure exclude each other\noverlap: hint: see its usage: overlap help run\n"},
		{"run --adopt 0 -- x", "overlap: error: invalid value \"0\" for flag --adopt (or $OVERLAP_RUN_ADOPT): want the pid of a running server\noverlap: hint: see the flags: overlap help run\n"},
	} {
		t.Run(test.args, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			args := append([]string{"overlap"}, strings.Fields(test.args)...)
			if code := Main(args, &stdout, &stderr); code != ExitUsage {
				t.Errorf("exit code %d, want %d", code, ExitUsage)
			}
			if stderr.String() != test.want || stdout.Len() > 0 {
				t.Errorf("got:\n%s%s\nwant:\n%s", &stdout, &stderr, test.want)
			}
		})
	}
}

func TestEnvironmentThatCannotBeParsed(t *testing.T) {
	t.Setenv("OVERLAP_BENCH_CLIENTS", "many")
	var stdout, stderr bytes.Buffer
	if code := Main([]string{"overlap", "bench"}, &stdout, &stderr); code != ExitUsage {
		t.Errorf("exit code %d", code)
	}
	if !strings.Contains(stderr.String(), `environment variable "OVERLAP_BENCH_CLIENTS" for flag --clients`) {
		t.Error(stderr.String())
	}
}

func TestWordsOfEvents(t *testing.T) {
	for kind, want := range map[string]string{
		control.KindStarting: "overlap: web: generation 2 is starting (3 ms)",
		control.KindHealthy:  "overlap: web: generation 2 is healthy (3 ms)",
		control.KindSwitched: "overlap: web: generation 2 serves (3 ms)",
		control.KindDrained:  "overlap: web: generation 2 has drained (3 ms)",
		control.KindMessage:  "overlap: web: generation 2: text (3 ms)",
	} {
		if got := wordsOfEvent("web", control.Event{Kind: kind, Generation: 2, Text: "text"}, 3*time.Millisecond); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got, want := wordsOfReload(control.Outcome{Service: "web", From: 1, To: 2, SwitchMS: 3.25}), "web: generation 2 serves instead of 1, switched after 3.2 ms"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestCause(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errInterrupted)
	if err := cause(ctx, context.Canceled); err != errInterrupted {
		t.Error(err)
	}
	if err := cause(ctx, errStillThere); err != errStillThere {
		t.Error(err)
	}
}

// What a service says, or another user has called a directory, is shown without what a terminal acts on.
func TestNothingButText(t *testing.T) {
	const evil = "a\x1b[2J\x1b]0;b\a\u009b31m\r\u202e\U000e0001c"
	s := &service{name: "web", generations: []generation{{note: noteNoAnswer, Generation: control.Generation{
		Generation: 1, State: evil, Listeners: []string{"unix:" + evil}}}}}
	for name, say := range map[string]func(p *program){
		"table":   func(p *program) { p.table(s) },
		"error":   func(p *program) { p.complain(&failure{"reload web", "web", &reloadError{evil}}) },
		"choices": func(p *program) { p.complain(&ambiguousError{"stop", "web", []string{evil, "/b"}}) },
		"warning": func(p *program) { p.warn(errors.New(evil)) },
		"event": func(p *program) {
			newProgress(p.stderr, "web").event(control.Event{Kind: control.KindMessage, Generation: 1, Text: evil})
		},
		"json": func(p *program) { p.print(shown(s)) },
	} {
		var out bytes.Buffer
		say(&program{stdout: &out, stderr: &out})
		if !strings.Contains(out.String(), "a") || strings.ContainsFunc(out.String(), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
			t.Errorf("%s: %q", name, out.String())
		}
		var back shownStatus
		if name == "json" && (json.Unmarshal(out.Bytes(), &back) != nil || back.Generations[0].State != evil) {
			t.Errorf("JSON comes back as %+v", back)
		}
	}
	e := &ambiguousError{"stop", "web", []string{"/tmp/overlap-$(id)"}}
	if got, want := e.hint(), "name its state directory: overlap --state-dir '/tmp/overlap-$(id)' stop web"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
