package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"overlap/lifecycle/bench"
	"overlap/test/netns"
)

// A trial runs in a process of its own, and as root in a network namespace of its own: so it meets
// no connection that an earlier one left in TIME_WAIT, for a minute and by the ten thousand, and
// sysctls that it sets are gone with it.

// envTrial makes this program run one trial, and say how it went on its standard output.
const envTrial = "OVERLAP_COMPARE_TRIAL"

// trialOrder is what such a process is told.
type trialOrder struct {
	Rival         string
	Mode          bench.Mode
	Idle          int // reloads without load
	Reloads       int
	Clients       int
	Every, Steady time.Duration
	Dir, Overlap  string
	Program, Env  []string
	OwnNetwork    bool
}

// trialAnswer is what it says.
type trialAnswer struct {
	Outcome *outcome
	Error   string
}

// trialPatience is how long a trial's process may take to end what it began.
const trialPatience = 2 * keeperPatience

// apart runs a trial in a process of its own.
func (c *comparison) apart(ctx context.Context, r *rival, mode bench.Mode, idle int) (*outcome, error) {
	order, err := json.Marshal(trialOrder{Rival: r.key, Mode: mode, Idle: idle, Reloads: c.reloads, Clients: c.clients,
		Every: c.every, Steady: c.steady, Dir: c.dir, Overlap: c.overlap, Program: c.program, Env: c.env, OwnNetwork: c.ownNetwork})
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), envTrial+"=1")
	cmd.Stdin = bytes.NewReader(order)
	var said, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &problems
	cmd.SysProcAttr = isolation(c.ownNetwork)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = trialPatience
	failed := cmd.Run()
	var a trialAnswer
	if err := json.Unmarshal(said.Bytes(), &a); err != nil {
		return nil, fmt.Errorf("%w: %s", errors.Join(failed, err), strings.TrimSpace(problems.String()))
	}
	if a.Error != "" {
		return nil, errors.New(a.Error)
	}
	return a.Outcome, failed
}

// one is the main function of a trial's process. It returns the exit code.
func one() int {
	var o trialOrder
	var a trialAnswer
	err := json.NewDecoder(os.Stdin).Decode(&o)
	if err == nil && o.OwnNetwork {
		err = netns.Up()
	}
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		a.Outcome, err = o.run(ctx)
	}
	if err != nil {
		a.Error = err.Error()
	}
	if err := json.NewEncoder(os.Stdout).Encode(a); err != nil {
		fmt.Fprintln(os.Stderr, "trial:", err)
		return 1
	}
	return 0
}

func (o *trialOrder) run(ctx context.Context) (*outcome, error) {
	c := &comparison{reloads: o.Reloads, clients: o.Clients, every: o.Every, steady: o.Steady, idle: o.Idle,
		dir: o.Dir, overlap: o.Overlap, program: o.Program, env: o.Env, ownNetwork: o.OwnNetwork}
	chosen, err := choose(o.Rival)
	if err != nil {
		return nil, err
	}
	return c.trial(ctx, chosen[0], o.Mode)
}
