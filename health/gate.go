package health

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// What the zero values of [Gate] stand for.
const (
	DefaultInterval     = 100 * time.Millisecond
	DefaultTimeout      = 5 * time.Second
	DefaultSuccesses    = 1
	DefaultFailures     = 0
	DefaultStartTimeout = 60 * time.Second
)

const (
	// The pause after the first try; each one after is twice as long, up to
	// the interval. Most servers listen a few milliseconds after their start.
	firstPause = 5 * time.Millisecond
	// How often Target.Alive is asked.
	alivePoll = 5 * time.Millisecond
)

// ErrUnhealthy is wrapped by the error of [Gate.Wait] when the starting
// generation did not pass.
var ErrUnhealthy = errors.New("unhealthy")

// A Gate stands between a starting generation and its first client. The zero
// value is useful.
type Gate struct {
	// Interval is the longest pause between two tries; the first few are
	// shorter, from 5 ms on. 0 or less: DefaultInterval.
	Interval time.Duration
	// Timeout is the time that one probe may take. 0 or less: DefaultTimeout.
	Timeout time.Duration
	// Successes is how many tries in a row must find all probes healthy. 0 or
	// less: DefaultSuccesses.
	Successes int
	// Failures is how many failed tries are borne; the next one ends the
	// gate. A server that does not listen yet fails too, every few
	// milliseconds. 0 or less: any number, until StartTimeout.
	Failures int
	// StartTimeout is the time that all of it may take. 0: DefaultStartTimeout;
	// negative: no limit but the context's.
	StartTimeout time.Duration
}

func (g Gate) withDefaults() Gate {
	if g.Interval <= 0 {
		g.Interval = DefaultInterval
	}
	if g.Timeout <= 0 {
		g.Timeout = DefaultTimeout
	}
	if g.Successes <= 0 {
		g.Successes = DefaultSuccesses
	}
	if g.StartTimeout == 0 {
		g.StartTimeout = DefaultStartTimeout
	}
	return g
}

// Wait returns nil as soon as all specs are healthy, Successes times in a row,
// and t still lives; without specs it only looks whether t lives. A try is one
// probe of each spec in order, up to the first that fails. READY=1 is acted on
// without waiting for the next try.
//
// Any other outcome is an error that wraps [ErrUnhealthy] and names the probe
// that failed last, how often it was tried, for how long, and what its last try
// saw. It wraps [ErrGone] too when t died. When ctx was cancelled, which says
// nothing about health, the error wraps ctx's cause and not ErrUnhealthy.
func (g Gate) Wait(ctx context.Context, t Target, specs ...Spec) error {
	g = g.withDefaults()
	if g.StartTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, g.StartTimeout,
			fmt.Errorf("the start time-out of %s is over", g.StartTimeout))
		defer cancel()
	}
	w := &waiting{Gate: g, target: t, specs: specs, began: time.Now(), tries: make([]int, len(specs))}
	w.ready = w.readiness()

	pause, healthy, failures := min(firstPause, g.Interval), 0, 0
	for {
		passed, stop := w.try(ctx)
		if stop != nil {
			return w.report(ctx, stop)
		}
		if passed {
			healthy++
		} else {
			healthy = 0
			failures++
		}
		if err := t.gone(); err != nil {
			return w.report(ctx, err)
		}
		if healthy >= g.Successes || len(specs) == 0 {
			return nil
		}
		if g.Failures > 0 && failures > g.Failures {
			return w.report(ctx, fmt.Errorf("%d failed tries, and %d are allowed", failures, g.Failures))
		}
		if stop := w.pause(ctx, pause); stop != nil {
			return w.report(ctx, stop)
		}
		pause = min(2*pause, g.Interval)
	}
}

// waiting is the state of one Wait. Only Wait's goroutine touches it.
type waiting struct {
	Gate
	target Target
	specs  []Spec
	began  time.Time
	ready  <-chan struct{} // cuts a pause short; nil when it has, or nobody asks

	tries   []int // for each spec
	suspect int   // the spec that was probed or has failed last
	saw     error // what its last failure saw
}

// readiness is the channel to be woken by: the target's, when a probe looks at
// it.
func (w *waiting) readiness() <-chan struct{} {
	for _, s := range w.specs {
		if s.kind == KindNotify {
			return w.target.Ready
		}
	}
	return nil
}

// try probes each spec up to the first that fails.
func (w *waiting) try(ctx context.Context) (passed bool, stop error) {
	if err := context.Cause(ctx); err != nil {
		return false, err
	}
	for i := range w.specs {
		if err, stop := w.probe(ctx, i); err != nil || stop != nil {
			return false, stop
		}
	}
	return true, nil
}

// probe asks spec i. When the wait must stop meanwhile, the probe is cut off and
// waited for: nothing of it is left running.
func (w *waiting) probe(ctx context.Context, i int) (err, stop error) {
	w.tries[i]++
	probeCtx, cancel := context.WithTimeoutCause(ctx, w.Timeout, fmt.Errorf("no answer within %s", w.Timeout))
	defer cancel()
	answer := make(chan error, 1)
	go func() { answer <- w.specs[i].check(probeCtx, w.target) }()

	err, stop = next(ctx, w.target, answer, nil)
	if deadline, ok := ctx.Deadline(); err != nil && ok && !time.Now().Before(deadline) {
		// What the end of the time did to the probe is no answer, even where it is heard of
		// before the end itself.
		<-ctx.Done()
		stop = context.Cause(ctx)
		answer <- err
	}
	if stop != nil {
		cancel()
		<-answer
		if w.saw == nil && w.tries[i] == 1 {
			w.suspect, w.saw = i, errors.New("no answer yet")
		}
		return nil, stop
	}
	if err != nil {
		w.suspect, w.saw = i, err
	}
	return err, nil
}

// pause lets d pass, or less when READY=1 comes.
func (w *waiting) pause(ctx context.Context, d time.Duration) (stop error) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	if _, stop := next(ctx, w.target, timer.C, w.ready); stop != nil {
		return stop
	}
	select {
	case <-w.ready:
		w.ready = nil
	default:
	}
	return nil
}

// next waits for an event, unless the wait must stop: the generation is gone or
// ctx has ended. It returns early, with the zero value, when early is closed.
func next[T any](ctx context.Context, t Target, event <-chan T, early <-chan struct{}) (value T, stop error) {
	var tick <-chan time.Time
	if t.Alive != nil {
		ticker := time.NewTicker(alivePoll)
		defer ticker.Stop()
		tick = ticker.C
	}
	for {
		select {
		case value = <-event:
			return value, nil
		case <-early:
			return value, nil
		case <-ctx.Done():
			return value, context.Cause(ctx)
		case <-t.Gone:
			return value, t.gone()
		case <-tick:
			if err := t.gone(); err != nil {
				return value, err
			}
		}
	}
}

// report turns the reason to stop into Wait's error.
func (w *waiting) report(ctx context.Context, stop error) error {
	if stop == context.DeadlineExceeded { // of who called, who gave no words for it
		stop = errOver
	}
	what := ErrUnhealthy
	if !errors.Is(stop, ErrGone) && errors.Is(ctx.Err(), context.Canceled) {
		what = errCancelled
	}
	elapsed := time.Since(w.began).Round(time.Millisecond)
	if len(w.specs) == 0 || w.tries[w.suspect] == 0 {
		return fmt.Errorf("%w: %w after %s", what, stop, elapsed)
	}
	tried := "once"
	if n := w.tries[w.suspect]; n > 1 {
		tried = fmt.Sprintf("%d times", n)
	}
	if w.saw == nil {
		return fmt.Errorf("%w: %w: health check %s tried %s in %s, healthy so far, but %d in a row are wanted",
			what, stop, w.specs[w.suspect], tried, elapsed, w.Successes)
	}
	return fmt.Errorf("%w: %w: health check %s tried %s in %s, last: %w",
		what, stop, w.specs[w.suspect], tried, elapsed, w.saw)
}

// overError is context.DeadlineExceeded in words for people.
type overError struct{}

func (*overError) Error() string { return "the time to start is over" }
func (*overError) Unwrap() error { return context.DeadlineExceeded }

var errOver = new(overError)

var errCancelled = errors.New("wait until healthy")
