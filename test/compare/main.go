package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"overlap/lifecycle/bench"
)

// idleReloads is how many reloads without load follow a trial in the first mode.
const idleReloads = 3

// comparison is what was asked for.
type comparison struct {
	rounds, reloads, clients int
	every, steady            time.Duration
	idle                     int // reloads without load, after each trial in the first mode
	rivals                   []*rival
	modes                    []bench.Mode
	dir                      string   // for everything temporary
	program                  []string // the server of the comparison
	env                      []string // its environment, beside the usual
	overlap                  string   // the binary, "" if there is none
	ownNetwork               bool     // each trial has a network of its own
	log                      io.Writer
}

func main() {
	if os.Getenv(envKeeper) != "" {
		os.Exit(keep())
	}
	if os.Getenv(envTrial) != "" {
		os.Exit(one())
	}
	if err := run(os.Args[1:]); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "compare: error:", err)
		}
		os.Exit(1)
	}
}

func run(args []string) (err error) {
	c := &comparison{log: os.Stderr, idle: idleReloads}
	var out, only, modes string
	flags := flag.NewFlagSet("compare", flag.ContinueOnError)
	flags.StringVar(&out, "o", "", "write the table to this `FILE`, and the picture beside it as .svg; else the table to stdout")
	flags.IntVar(&c.rounds, "rounds", 3, "how often each rival has its turn")
	flags.IntVar(&c.reloads, "reloads", 7, "of each rival, in each mode of each round")
	flags.IntVar(&c.clients, "clients", bench.DefaultClients, "clients at the same time")
	flags.DurationVar(&c.every, "every", 300*time.Millisecond, "time between reloads at least")
	flags.DurationVar(&c.steady, "duration", 700*time.Millisecond, "of load before the first reload")
	flags.StringVar(&only, "rivals", "", "only these, `KEYS` with commas between them: "+strings.Join(keys(), ", "))
	flags.StringVar(&modes, "mode", "both", "close, keepalive or both")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := c.check(flags, only, modes); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if c.dir, err = os.MkdirTemp("", "overlap-compare-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(c.dir)) }()
	if err := c.build(ctx); err != nil {
		return err
	}
	if c.ownNetwork = canIsolate(); !c.ownNetwork {
		fmt.Fprintln(c.log, "compare: no network namespace (only root gets one): what else this machine does on its loopback is measured too")
	}
	found := describe(args)
	rep, err := c.run(ctx)
	if err != nil {
		return err
	}
	rep.place = found
	return rep.write(out, os.Stdout)
}

func (c *comparison) check(flags *flag.FlagSet, only, modes string) error {
	var mode bench.Mode
	if err := mode.UnmarshalText([]byte(modes)); err != nil {
		return err
	}
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case c.rounds < 1 || c.reloads < 1 || c.clients < 1 || c.every < 0 || c.steady <= 0:
		return errors.New("rounds, reloads, clients and duration must be above 0")
	case mode > bench.KeepAlive:
		return fmt.Errorf("mode %s: close, keepalive or both", mode)
	}
	c.modes = []bench.Mode{mode}
	if mode == bench.Both {
		c.modes = []bench.Mode{bench.Close, bench.KeepAlive}
	}
	var err error
	c.rivals, err = choose(only)
	return err
}

func keys() []string {
	var all []string
	for i := range rivals {
		all = append(all, rivals[i].key)
	}
	return all
}

func choose(only string) ([]*rival, error) {
	var chosen []*rival
	for i := range rivals {
		if only == "" || strings.Contains(","+only+",", ","+rivals[i].key+",") {
			chosen = append(chosen, &rivals[i])
		}
	}
	if only != "" && len(chosen) != len(strings.Split(only, ",")) {
		return nil, fmt.Errorf("rivals %q: choose from %s", only, strings.Join(keys(), ", "))
	}
	return chosen, nil
}

// build builds the server of the comparison, and overlap.
func (c *comparison) build(ctx context.Context) error {
	if err := os.Chmod(c.dir, 0o755); err != nil { // a rival's workers may be another user's
		return err
	}
	c.overlap = filepath.Join(c.dir, "overlap")
	server := filepath.Join(c.dir, "server")
	c.program = []string{server}
	for to, pkg := range map[string]string{server: "overlap/test/compare/server", c.overlap: "overlap"} {
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", to, pkg).CombinedOutput(); err != nil {
			return fmt.Errorf("build %s (from inside the module): %w: %s", pkg, err, out)
		}
	}
	return nil
}

// run is the whole comparison: rounds of all rivals, in another order each time, so that none
// always follows the same one.
func (c *comparison) run(ctx context.Context) (*report, error) {
	// A trial's process ends with the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	rep := newReport(c)
	probe := &bed{overlap: c.overlap, ownNetwork: c.ownNetwork}
	var able []*rival
	for _, r := range c.rivals {
		if r.missing != nil {
			if why := r.missing(probe); why != "" {
				fmt.Fprintf(c.log, "%s: skipped: %s\n", r.key, why)
				rep.skip(r, why)
				continue
			}
		}
		able = append(able, r)
	}
	for round := range c.rounds {
		for _, mode := range c.modes {
			for _, i := range rand.Perm(len(able)) {
				idle := 0
				if mode == c.modes[0] {
					idle = c.idle
				}
				began := time.Now()
				o, err := c.apart(ctx, able[i], mode, idle)
				if ctx.Err() != nil {
					return nil, context.Cause(ctx)
				}
				rep.add(able[i], mode, round, o, err)
				fmt.Fprintf(c.log, "round %d/%d %-9s %-16s %s (%.1f s)\n", round+1, c.rounds, mode, able[i].key, words(o, err), time.Since(began).Seconds())
			}
		}
	}
	return rep, nil
}

func words(o *outcome, err error) string {
	if err != nil {
		return "not measured: " + err.Error()
	}
	text := o.Result.Outcome()
	if o.Failed > 0 {
		text += "; a reload failed: " + o.Reason
	}
	return text
}
