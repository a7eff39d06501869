package cli

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	urfave "github.com/urfave/cli/v2"

	"overlap/lifecycle/bench"
)

// Defaults of bench.
const (
	DefaultBenchDuration = 20 * time.Second
	DefaultReloadEvery   = 500 * time.Millisecond
	builtinBody          = 64 // bytes
)

func (p *program) benchCommand() *urfave.Command {
	return &urfave.Command{
		Name:      "bench",
		Usage:     "show what clients notice of reloads",
		UsageText: "overlap bench [flags] [-- COMMAND [ARGUMENTS]]",
		Description: "Makes requests while a service is reloaded again and again, and accounts for each of them.\n" +
			"The service is one that runs (--name), a command under a launcher of its own, or else the\n" +
			"built-in server. A request has failed without a whole answer of a status from 200 to 399 in time,\n" +
			"with a body that is not the one of --expect, and, at a --rate, when it was due and no client\n" +
			"was free to send it. Exits with 1 if anything failed.",
		Flags: withEnvironment([]urfave.Flag{
			&urfave.StringFlag{Name: "name", Usage: "`NAME` of a running service"},
			&urfave.StringSliceFlag{Name: "listen", Usage: "`ADDRESS` that makes the command ready, as of run: host:port, or udp:host:port, which --udp needs; may be repeated, or several with commas"},
			&urfave.IntFlag{Name: "clients", Value: bench.DefaultClients, Usage: "how many clients"},
			&urfave.DurationFlag{Name: "duration", Value: DefaultBenchDuration, Usage: "how long"},
			&urfave.DurationFlag{Name: "reload-every", Value: DefaultReloadEvery, Usage: "time from one reload to the next, 0 is no reload"},
			&urfave.IntFlag{Name: "reloads", Usage: "end after so many reloads, instead of --duration"},
			&urfave.StringFlag{Name: "mode", Value: bench.Both.String(), Usage: "how clients use connections: `close|keepalive|both`"},
			&urfave.Float64Flag{Name: "rate", Usage: "requests a second, begun at fixed moments; 0: each client begins when its last one ended"},
			&urfave.DurationFlag{Name: "think", Usage: "pause of a client between requests"},
			&urfave.DurationFlag{Name: "timeout", Value: bench.DefaultTimeout, Usage: "how long one request may take"},
			&urfave.StringFlag{Name: "method", Usage: "the requests' `METHOD`", DefaultText: "GET, POST with a body"},
			&urfave.StringFlag{Name: "path", Usage: "the requests' `PATH`; of one that tells readiness (/healthz), the 503 of a draining generation is a failure", DefaultText: "/, /echo of the built-in server"},
			&urfave.StringFlag{Name: "body", Usage: "the requests' `BODY`", DefaultText: "none, 64 bytes to the built-in server"},
			&urfave.StringFlag{Name: "expect", Usage: "`BODY` that each answer must have, byte for byte, a line's end at the end too", DefaultText: "any, of the built-in server's /echo the number of bytes"},
			&urfave.BoolFlag{Name: "tls", Usage: "speak HTTPS and accept any certificate"},
			&urfave.BoolFlag{Name: "udp", Usage: "datagrams that the server echoes, instead of HTTP"},
			&urfave.BoolFlag{Name: "json", Usage: "print the account as JSON"},
			&urfave.StringFlag{Name: "report", Usage: "write the account as an HTML page to `FILE`"},
		}, "bench"),
		Action: p.bench,
	}
}

func (p *program) bench(c *urfave.Context) error {
	run, err := p.readBench(c)
	if err != nil {
		return err
	}
	ctx, stop := endedBy(c.Context, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer stop()
	if err := run.do(ctx); err != nil {
		return &failure{"bench", run.name, cause(ctx, err)}
	}
	return nil
}

// endedBy is a context that ends at a signal: a terminal that is closed (SIGHUP) ends a bench as
// Ctrl-C does. nohup's word holds.
func endedBy(parent context.Context, all ...os.Signal) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	for _, sig := range all {
		if sig != syscall.SIGHUP || !signal.Ignored(sig) {
			signal.Notify(signals, sig)
		}
	}
	done := make(chan struct{})
	go func() {
		select {
		case <-signals:
			cancel(errInterrupted)
		case <-done:
		}
	}()
	return ctx, func() { signal.Stop(signals); close(done); cancel(nil) }
}

// benchRun is what bench was told.
type benchRun struct {
	p       *program
	load    bench.Load
	name    string   // of a running service
	command []string // of a launched one
	listen  []string // addresses of it, where they must be told
	every   time.Duration
	limit   int // reloads
	json    bool
	report  string
}

func (p *program) readBench(c *urfave.Context) (*benchRun, error) {
	before, command := splitCommand(c.Args().Slice())
	if len(before) > 0 {
		return nil, unexpected(c, before[0])
	}
	r := &benchRun{p: p, name: c.String("name"), command: command, listen: list(c, "listen"),
		every: c.Duration("reload-every"), limit: c.Int("reloads"), json: c.Bool("json"), report: c.String("report")}
	if err := r.fits(c); err != nil {
		return nil, err
	}
	return r, r.readLoad(c)
}

// fits checks what flags say together.
func (r *benchRun) fits(c *urfave.Context) error {
	usage := func(text string) error { return &usageError{"bench: " + text, "see its usage: overlap help bench"} }
	switch {
	case r.name != "" && len(r.command) > 0:
		return usage("--name and a command exclude each other")
	case r.command != nil && len(r.command) == 0:
		return usage("no command behind --")
	case r.limit < 0 || r.limit > 0 && r.every <= 0:
		return usage("--reloads wants a number above 0, and --reload-every too")
	case len(r.listen) > 0 && len(r.command) == 0:
		return usage("--listen is for a command")
	}
	datagrams := false
	for _, addr := range r.listen {
		network, err := parseReady(addr)
		if err != nil {
			return badValue(c, "listen", addr, err.Error())
		}
		datagrams = datagrams || network == "udp"
	}
	if !c.Bool("udp") {
		return nil
	}
	for _, flag := range []string{"mode", "method", "path", "expect", "tls"} {
		if c.IsSet(flag) {
			return usage("--udp and --" + flag + " exclude each other")
		}
	}
	if len(r.command) > 0 && !datagrams {
		return usage("--udp with a command wants its address too: --listen udp:host:port")
	}
	return nil
}

// readLoad is what the clients shall do.
func (r *benchRun) readLoad(c *urfave.Context) error {
	for _, flag := range []string{"duration", "reload-every", "think", "timeout"} {
		if d := c.Duration(flag); d < 0 {
			return badValue(c, flag, d.String(), "0 or more")
		}
	}
	if n := c.Int("clients"); n <= 0 {
		return badValue(c, "clients", fmt.Sprint(n), "1 or more")
	}
	if rate := c.Float64("rate"); !(rate >= 0 && rate <= bench.MaxRate) { // what is no number is neither
		return badValue(c, "rate", fmt.Sprint(rate), fmt.Sprintf("0 to %.0e", bench.MaxRate))
	}
	if path := c.String("path"); path != "" && !bench.ValidPath(path) {
		return badValue(c, "path", path, "a path that begins with / and has no blanks")
	}
	if method := c.String("method"); method != "" && !bench.ValidMethod(method) {
		return badValue(c, "method", method, "one word, such as GET")
	}
	r.load = bench.Load{Clients: c.Int("clients"), Duration: c.Duration("duration"), Rate: c.Float64("rate"), Think: c.Duration("think"),
		Timeout: c.Duration("timeout"), Method: c.String("method"), Path: c.String("path"), Body: []byte(c.String("body"))}
	if err := r.load.Mode.UnmarshalText([]byte(c.String("mode"))); err != nil {
		return badValue(c, "mode", c.String("mode"), "close, keepalive or both")
	}
	if r.load.Duration == 0 && r.limit == 0 {
		return badValue(c, "duration", "0s", "more than 0")
	}
	if r.limit > 0 && !c.IsSet("duration") {
		r.load.Duration = 0
	}
	if c.Bool("udp") {
		r.load.Network = "udp"
	}
	if c.Bool("tls") {
		r.load.TLS = &tls.Config{InsecureSkipVerify: true}
	}
	if c.IsSet("expect") {
		want := c.String("expect")
		if len(want) >= bench.MaxCheckedBody {
			return badValue(c, "expect", fmt.Sprintf("%.20s…", want), fmt.Sprintf("less than %d bytes", bench.MaxCheckedBody))
		}
		r.load.Check = bench.CheckBody([]byte(want))
	}
	if r.builtin() && r.load.Path == "" {
		if len(r.load.Body) == 0 {
			r.load.Body = bytes.Repeat([]byte("x"), builtinBody)
		}
		if r.load.Network != "udp" { // there every answer is an echo, and checked as one
			r.load.Path = "/echo"
			if r.load.Check == nil {
				r.load.Check = bench.CheckBytes(len(r.load.Body))
			}
		}
	}
	return nil
}

func (r *benchRun) builtin() bool { return r.name == "" && len(r.command) == 0 }

// do is one run from the start of a server to its end.
func (r *benchRun) do(ctx context.Context) (err error) {
	var page *os.File
	if r.report != "" {
		if page, err = os.Create(r.report); err != nil { // before the work, not after it
			return err
		}
		defer page.Close()
	}
	var target *benchTarget
	if r.name != "" {
		target, err = r.findTarget(ctx)
	} else {
		target, err = r.startTarget(ctx)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.close()) }()
	r.load.Address = target.address
	result, reloads, err := r.measure(ctx, target)
	if result == nil {
		return err
	}
	if werr := r.write(result, page); werr != nil {
		err = errors.Join(err, werr)
	}
	switch {
	case err != nil:
		return err
	case result.Failed > 0:
		return fmt.Errorf("%w: %d of %d requests failed", lossOf(result), result.Failed, result.Requests)
	case reloads.failed > 0:
		return fmt.Errorf("%d of %d reloads failed: %s", reloads.failed, reloads.begun, reloads.reason)
	case result.Requests == 0:
		return errors.New("no request was made")
	}
	return context.Cause(ctx)
}

// lossOf tells answers of a path that was told to say no from requests that were lost.
func lossOf(r *bench.Result) error {
	unavailable := r.Handovers > 0 && r.ByCause[bench.Status] == r.Failed
	for _, f := range r.Failures {
		unavailable = unavailable && f.Error == "status 503"
	}
	if unavailable {
		return errReadiness
	}
	return errLoss
}

// measure makes the load and the reloads.
func (r *benchRun) measure(ctx context.Context, target *benchTarget) (*bench.Result, *reloads, error) {
	loading, done := context.WithCancel(ctx)
	defer done()
	var marks bench.Marks
	again := &reloads{target: target, marks: &marks, every: r.every, limit: r.limit, stop: done}
	if r.load.Duration > 0 {
		again.until = time.Now().Add(r.load.Duration)
	}
	watch := newBenchProgress(r.p.stderr, again)
	r.load.Progress = watch.show
	finished := make(chan struct{})
	go func() { defer close(finished); again.run(loading) }()
	result, err := r.load.Run(loading, &marks)
	done()
	<-finished
	watch.line.end()
	if err != nil {
		return nil, again, err
	}
	return result, again, nil
}

func (r *benchRun) write(result *bench.Result, page *os.File) error {
	if page != nil {
		if err := errors.Join(result.Report(page), page.Close()); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
	}
	out := result.Table() + "\n" + result.Outcome()
	if r.json {
		data, err := result.JSON()
		if err != nil {
			return err
		}
		out = string(data)
	}
	if _, err := fmt.Fprintln(r.p.stdout, strings.TrimRight(out, "\n")); err != nil {
		return fmt.Errorf("write the account: %w", err)
	}
	return nil
}

// benchProgress shows the run while it goes on: on a terminal one line that changes, elsewhere
// a line a second.
type benchProgress struct {
	line    *progress
	reloads *reloads
	next    time.Duration
}

func newBenchProgress(to io.Writer, again *reloads) *benchProgress {
	return &benchProgress{line: newProgress(to, ""), reloads: again}
}

func (b *benchProgress) show(s bench.Snapshot) {
	if !b.line.live {
		if s.Elapsed < b.next {
			return
		}
		b.next = s.Elapsed.Truncate(time.Second) + time.Second
	}
	b.line.line(wordsOfBench(s, b.reloads.serving()))
}
