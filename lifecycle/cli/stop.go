package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"sync"
	"syscall"
	"time"

	urfave "github.com/urfave/cli/v2"

	"overlap/lifecycle"
	"overlap/lifecycle/control"
	"overlap/lifecycle/launcher"
	"overlap/lifecycle/owner"
	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
)

// stopMargin is how much longer than its drain time-out a generation may take to be gone.
const stopMargin = 10 * time.Second

func (p *program) stopCommand() *urfave.Command {
	return &urfave.Command{
		Name:        "stop",
		Usage:       "drain a service and end it",
		UsageText:   "overlap stop [flags] [NAME]",
		Description: "Waits until every generation is gone. Ctrl-C stops waiting, not the drain.",
		Flags: withEnvironment([]urfave.Flag{
			&urfave.DurationFlag{Name: "timeout", Usage: "the drain time-out, in place of the service's own", DefaultText: "the service's own"},
		}, "stop"),
		Action: p.stop,
	}
}

func (p *program) stop(c *urfave.Context) error {
	name, err := oneName(c, afterDashes(c.Args().Slice()))
	if err != nil {
		return err
	}
	timeout := c.Duration("timeout")
	if timeout < 0 {
		return badValue(c, "timeout", timeout.String(), "0 or more")
	}
	s, err := p.service(c.Context, "stop", name)
	if err != nil {
		return err
	}
	defer s.close()
	ctx, stop := interruptible(c.Context)
	defer stop()
	progress := newProgress(p.stderr, s.name)
	err = p.stopAll(ctx, s, timeout, progress.event)
	progress.end()
	if err != nil {
		return &failure{"stop " + s.name, s.name, cause(ctx, err)}
	}
	fmt.Fprintln(p.stdout, wordsOfStop(s.name))
	return nil
}

// stopRounds is how often a service is stopped that has begun another generation meanwhile. A service
// manager that starts it again and again must not be kept from it.
const stopRounds = 3

// stopAll stops the service, and what a reload or a restart has begun meanwhile.
func (p *program) stopAll(ctx context.Context, s *service, timeout time.Duration, events func(control.Event)) error {
	err := s.stop(ctx, timeout, events)
	for round := 1; err == nil && round < stopRounds; round++ {
		left, lerr := p.look(ctx, s.root, s.name)
		if lerr != nil {
			return lerr
		}
		if len(left.generations) == 0 {
			left.close()
			break
		}
		err = left.stop(ctx, timeout, events)
		left.close()
	}
	return err
}

// stop ends every generation and waits until all are gone. A timeout of 0 is each one's own.
func (s *service) stop(ctx context.Context, timeout time.Duration, events func(control.Event)) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, min(timeout, math.MaxInt64-stopMargin)+stopMargin, errStillThere)
		defer cancel()
	}
	var mu sync.Mutex
	tell := func(e control.Event) {
		mu.Lock()
		defer mu.Unlock()
		if events != nil {
			events(e)
		}
	}
	failed := make([]error, len(s.generations))
	var all sync.WaitGroup
	for i, g := range s.generations { // newest first: the older ones must not take its clients back
		all.Go(func() { failed[i] = s.end(ctx, g, timeout, tell) })
	}
	all.Wait()
	if err := errors.Join(failed...); err != nil {
		return err
	}
	tidying, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	err := owner.Tidy(tidying, s.dir, slog.Default())
	if errors.Is(err, state.ErrBusy) || errors.Is(err, fs.ErrPermission) {
		return nil // somebody starts, and does it; or it is another user's, who will
	}
	if err != nil {
		return fmt.Errorf("remove what is left: %w", err)
	}
	return nil
}

// end ends one generation and waits until it is gone.
func (s *service) end(ctx context.Context, g generation, timeout time.Duration, events func(control.Event)) error {
	n := g.Generation.Generation
	if g.note == noteNoLauncher {
		return s.endProgram(ctx, g, timeout)
	}
	var err error
	if g.note == "" {
		_, err = s.client(g).Stop(ctx, control.StopRequest{Timeout: timeout}, events)
	}
	if ctx.Err() == nil && s.dir.Owned(n) && (g.note != "" || err != nil && !errors.Is(err, control.ErrNoOutcome)) {
		err = s.terminate(g)
	}
	if err != nil && ctx.Err() == nil && s.dir.Owned(n) && !errors.Is(err, control.ErrNoOutcome) {
		return fmt.Errorf("generation %d (pid %d): %w", n, g.PID, err)
	}
	return s.gone(ctx, g, func() bool { return !s.dir.Owned(n) })
}

// terminate is the way where the control socket does not answer. The record names whomever the service's user
// likes, as in endProgram, and must not have root end what that user could not.
func (s *service) terminate(g generation) error {
	if g.record == nil {
		return errNoAnswer
	}
	h, err := process.Open(g.record.Owner)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer h.Close()
	return h.SignalAs(s.dir.UID(), syscall.SIGTERM)
}

// endProgram ends a program whose launcher died, as its launcher would have.
func (s *service) endProgram(ctx context.Context, g generation, timeout time.Duration) error {
	if g.record == nil || g.record.Program == nil {
		return fmt.Errorf("generation %d: its program is not known", g.Generation.Generation)
	}
	if timeout <= 0 {
		timeout = lifecycle.DefaultDrainTimeout
	}
	ended := make(chan error, 1)
	go func() { // Ctrl-C stops waiting, and must not kill
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
		defer cancel()
		ended <- launcher.StopOrphan(ctx, *g.record, s.dir.UID())
	}()
	select {
	case err := <-ended:
		if err != nil {
			return fmt.Errorf("end the program of generation %d: %w", g.Generation.Generation, err)
		}
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeoutCause(ctx, stopMargin, errStillThere)
	defer cancel()
	if err := s.gone(ctx, g, func() bool { return !owner.Orphan(*g.record) }); err != nil {
		return err
	}
	err := s.dir.Remove(g.Generation.Generation)
	if errors.Is(err, fs.ErrPermission) {
		return nil // it is another user's, who will
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove what is left of generation %d: %w", g.Generation.Generation, err)
	}
	return nil
}

// gone waits until it is so. A lock tells nobody that it was freed, so it is looked at again.
func (s *service) gone(ctx context.Context, g generation, is func() bool) error {
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for !is() {
		select {
		case <-look.C:
		case <-ctx.Done():
			return fmt.Errorf("generation %d (pid %d): %w", g.Generation.Generation, g.PID, context.Cause(ctx))
		}
	}
	return nil
}
