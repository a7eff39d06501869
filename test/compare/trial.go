package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"overlap/lifecycle/bench"
	"overlap/lifecycle/state"
	"overlap/test/compare/internal/serve"
)

const (
	startPatience  = 30 * time.Second // until the first generation answers
	switchPatience = 15 * time.Second // from a reload to the first answer of the new generation
	settlePatience = 15 * time.Second // from there until the old one has ended
	warmUp         = 300 * time.Millisecond
	// pollEvery is how often a new connection asks for the new generation. Without that, clients
	// with keep-alive would never meet the one that only new connections reach.
	pollEvery = 5 * time.Millisecond
	// settleLook is how often a keeper is asked whether the old one has ended.
	settleLook = 25 * time.Millisecond
	// rest is how long a rival is left alone between the end of an old generation and the next
	// reload: HAProxy's master misses a signal that comes while it takes the old one's end.
	rest = 100 * time.Millisecond
	// tail is how long load goes on after the last old generation has ended.
	tail = 250 * time.Millisecond
)

// bed is what one trial has: a directory, a keeper, an address, and the generation to be next.
type bed struct {
	ctx          context.Context
	dir          string
	program, env []string // the server of the comparison, and its environment
	overlap      string   // the binary, "" if there is none
	address      string
	keeper       *keeper
	prepare      func() error // writes the configuration of the generation, nil: nothing to do
	ownNetwork   bool
	generation   string
	serving      atomic.Int64 // the process that answered for the newest generation, where it says so
	awaiting     atomic.Pointer[sighting]
	reload       reloader
	everyone     int // processes of one generation and what stands above it
	number       int
}

// sighting waits for the first answer of a generation.
type sighting struct {
	generation string
	once       sync.Once
	at         time.Time
	seen       chan struct{}
}

func (b *bed) generationFile() string { return filepath.Join(b.dir, "generation") }

// look is what each answer goes through.
func (b *bed) look(generation string, header func(string) string) {
	s := b.awaiting.Load()
	if s == nil || generation != s.generation {
		return
	}
	s.once.Do(func() {
		s.at = time.Now()
		pid, _ := strconv.ParseInt(header(serve.PidHeader), 10, 64)
		b.serving.Store(pid)
		b.awaiting.Store(nil)
		close(s.seen)
	})
}

// next names the next generation and begins to wait for it.
func (b *bed) next() (*sighting, error) {
	b.number++
	b.generation = strconv.Itoa(b.number)
	if err := replace(b.generationFile(), b.generation+"\n"); err != nil {
		return nil, err
	}
	if b.prepare != nil {
		if err := b.prepare(); err != nil {
			return nil, err
		}
	}
	s := &sighting{generation: b.generation, seen: make(chan struct{})}
	b.awaiting.Store(s)
	return s, nil
}

// newBed makes a bed for a rival and starts its first generation.
func (c *comparison) newBed(ctx context.Context, r *rival) (*bed, error) {
	dir, err := state.MkdirTemp("overlap-trial-") // in memory, for every rival
	if err != nil {
		return nil, err
	}
	b := &bed{ctx: ctx, dir: dir, program: c.program, env: c.env, overlap: c.overlap, ownNetwork: c.ownNetwork}
	if err := b.start(r); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", r.title, err), b.close())
	}
	return b, nil
}

func (b *bed) start(r *rival) error {
	log, err := os.Create(filepath.Join(b.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	if b.address, err = freeAddress(); err != nil {
		return err
	}
	if b.keeper, err = newKeeper(b.dir, log); err != nil {
		return err
	}
	s, err := b.next()
	if err != nil {
		return err
	}
	if b.reload, err = r.start(b); err != nil {
		return err
	}
	if err := b.poll(s, startPatience); err != nil {
		return err
	}
	return b.count()
}

// count waits until the number of processes stands still, and keeps it.
func (b *bed) count() error {
	same, last := 0, -1
	for until := time.Now().Add(startPatience); same < 4; {
		u, err := b.keeper.usage()
		if err != nil {
			return err
		}
		if same++; u.Live != last {
			same, last = 0, u.Live
		}
		if time.Now().After(until) {
			return errors.New("the number of its processes does not stand still")
		}
		if err := wait(b.ctx, settleLook); err != nil {
			return err
		}
	}
	b.everyone = last
	return nil
}

// close ends the rival and removes its files. It returns what went wrong with that.
func (b *bed) close() error {
	var all []error
	if b.keeper != nil {
		all = append(all, b.keeper.close())
	}
	return errors.Join(append(all, os.RemoveAll(b.dir))...)
}

// said is the end of what the rival said, in one line.
func (b *bed) said() string {
	data, _ := os.ReadFile(filepath.Join(b.dir, "log"))
	return strings.ReplaceAll(strings.TrimSpace(string(data[max(0, len(data)-300):])), "\n", "; ")
}

// firstPort is below the ports that clients get by themselves, net.ipv4.ip_local_port_range.
const firstPort = 20000

var lastPort atomic.Int64

// freeAddress is another address each time, so no trial meets what another left behind.
func freeAddress() (string, error) {
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", firstPort+lastPort.Add(1)%10000)
		ln, err := net.Listen("tcp", address)
		if err == nil {
			return address, ln.Close()
		}
	}
	return "", errors.New("find a free port: none in a thousand")
}

// wait is a pause that the end of the context cuts short.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(max(d, 0))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// poll asks, with a connection for each request, until the sighting is made, by its own request or
// by a client's.
func (b *bed) poll(s *sighting, patience time.Duration) error {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for until := time.Now().Add(patience); ; {
		req, err := http.NewRequestWithContext(b.ctx, http.MethodGet, "http://"+b.address+"/", nil)
		if err != nil {
			return err
		}
		if resp, err := client.Do(req); err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			b.look(resp.Header.Get(serve.GenerationHeader), resp.Header.Get)
		}
		select {
		case <-s.seen:
			return nil
		case <-b.ctx.Done():
			return b.ctx.Err()
		case <-time.After(pollEvery):
		}
		if time.Now().After(until) {
			return fmt.Errorf("no answer of generation %s within %s", s.generation, patience)
		}
	}
}

// settled waits until no more processes live than belong to one generation.
func (b *bed) settled() error {
	for until := time.Now().Add(settlePatience); ; {
		u, err := b.keeper.usage()
		if err != nil {
			return err
		}
		if u.Live <= b.everyone {
			return nil
		}
		if time.Now().After(until) {
			return fmt.Errorf("the old generation had not ended %s after the switch", settlePatience)
		}
		if err := wait(b.ctx, settleLook); err != nil {
			return err
		}
	}
}

// outcome is what one trial of a rival, in one mode, came to.
type outcome struct {
	Result *bench.Result
	// Switches are the times from the reload's command to the first answer of the new generation.
	Switches []time.Duration
	// Before and During are requests a second before the first reload, and from there on.
	Before, During float64
	// RequestCPU is user and system time of the rival's processes for a request, before the first
	// reload.
	RequestCPU time.Duration
	// ReloadCPU is that of each reload without load; nil where it was not measured.
	ReloadCPU []time.Duration
	// Failed are reloads that never switched, and Reason is that of the last one.
	Failed int
	Reason string
}

// trial starts a rival, loads it, reloads it, and ends it.
func (c *comparison) trial(ctx context.Context, r *rival, mode bench.Mode) (_ *outcome, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.limit())
	defer cancel()
	b, err := c.newBed(ctx, r)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	o := &outcome{}
	if err := c.loaded(b, mode, o); err != nil {
		return nil, fmt.Errorf("%w; it said: %s", err, b.said())
	}
	if o.Failed == 0 {
		for range c.idle {
			if err := b.idleReload(o); err != nil {
				o.Failed++
				o.Reason = fmt.Sprintf("without load: %v; it said: %s", err, b.said())
				break
			}
		}
	}
	return o, nil
}

// limit bounds a trial.
func (c *comparison) limit() time.Duration {
	return startPatience + c.steady + time.Duration(c.reloads+c.idle)*(c.every+5*time.Second) + switchPatience + settlePatience
}

// loaded makes the load and the reloads.
func (c *comparison) loaded(b *bed, mode bench.Mode, o *outcome) error {
	loading, stop := context.WithCancel(b.ctx)
	defer stop()
	var marks bench.Marks
	load := bench.Load{Address: b.address, Clients: c.clients, Mode: mode, Check: func(a *bench.Answer) error {
		if string(a.Body) != serve.Body {
			return fmt.Errorf("answer %.100q", a.Body)
		}
		b.look(a.Generation, a.Get)
		return nil
	}}
	type done struct {
		result *bench.Result
		err    error
	}
	ended := make(chan done, 1)
	go func() {
		result, err := load.Run(loading, &marks)
		ended <- done{result, err}
	}()
	cpu, from, to, err := c.reloadAll(b, o, &marks)
	if err == nil {
		err = wait(b.ctx, tail)
	}
	stop()
	d := <-ended
	if err = errors.Join(err, d.err); err != nil {
		return err
	}
	o.Result = d.result
	var n float64
	o.Before, n = rate(o.Result, from, to)
	o.During, _ = rate(o.Result, to, o.Result.Started.Add(o.Result.Elapsed))
	if n > 0 {
		o.RequestCPU = time.Duration(float64(cpu) / n)
	}
	return nil
}

// reloadAll lets the load run for a while, then reloads. It returns the CPU time that the rival
// used in the time before the first reload, and that time.
func (c *comparison) reloadAll(b *bed, o *outcome, marks *bench.Marks) (cpu time.Duration, from, to time.Time, err error) {
	if err = wait(b.ctx, warmUp); err != nil {
		return
	}
	first, err := b.keeper.usage()
	if err != nil {
		return
	}
	from = time.Now()
	if err = wait(b.ctx, c.steady); err != nil {
		return
	}
	last, err := b.keeper.usage()
	if err != nil {
		return
	}
	cpu, to = last.CPU-first.CPU, time.Now()
	for range c.reloads {
		at := time.Now()
		if err = c.reloadOnce(b, o, marks); err != nil || o.Failed > 0 {
			return
		}
		if err = wait(b.ctx, max(rest, c.every-time.Since(at))); err != nil {
			return
		}
	}
	return
}

// reloadOnce reloads under load. A reload that fails is part of the outcome and no error.
func (c *comparison) reloadOnce(b *bed, o *outcome, marks *bench.Marks) error {
	took, at, err := b.reloadNow()
	if at.IsZero() {
		marks.Add(bench.Mark{Kind: bench.NotSwitched, Generation: b.number})
	} else {
		o.Switches = append(o.Switches, took)
		marks.Add(bench.Mark{Kind: bench.Switch, Generation: b.number, At: at})
		if err == nil {
			err = b.settled()
		}
	}
	if err != nil {
		o.Failed++
		o.Reason = fmt.Sprintf("%v; it said: %s", err, b.said())
	}
	return b.ctx.Err()
}

// reloadNow starts the next generation and waits for its first answer. It returns how long that
// took, and when it was: zero if there was none.
func (b *bed) reloadNow() (took time.Duration, at time.Time, err error) {
	s, err := b.next()
	if err != nil {
		return 0, at, err
	}
	began := time.Now()
	told := make(chan error, 1)
	go func() { told <- b.reload(s.seen) }()
	if err := b.poll(s, switchPatience); err != nil {
		return 0, at, err
	}
	return s.at.Sub(began), s.at, <-told
}

// idleReload reloads without load, and notes the CPU time of all processes together, the new
// one's start and the old one's end included.
func (b *bed) idleReload(o *outcome) error {
	if err := wait(b.ctx, rest); err != nil {
		return err
	}
	first, err := b.keeper.usage()
	if err != nil {
		return err
	}
	if _, _, err := b.reloadNow(); err != nil {
		return err
	}
	if err := b.settled(); err != nil {
		return err
	}
	last, err := b.keeper.usage()
	if err != nil {
		return err
	}
	o.ReloadCPU = append(o.ReloadCPU, last.CPU-first.CPU)
	return nil
}

// rate is answers a second between two moments, and how many they were.
func rate(r *bench.Result, from, to time.Time) (perSecond, n float64) {
	a, z := float64(from.Sub(r.Started)), float64(to.Sub(r.Started))
	for _, p := range r.Points {
		// A point that lies across an end counts for its part.
		start, end := float64(p.Offset), float64(p.Offset+p.Width)
		if part := math.Min(end, z) - math.Max(start, a); part > 0 {
			n += float64(p.Requests) * part / (end - start)
		}
	}
	if z <= a {
		return 0, n
	}
	return n / ((z - a) / 1e9), n
}
