package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"overlap/lifecycle/process"
)

// tick is the unit of times in /proc/PID/stat: USER_HZ, 100 on every Linux, proc(5).
const tick = time.Second / 100

// warden is the keeper's own side.
type warden struct {
	mu     sync.Mutex // holds off reaping while a child is started or the tree is read
	reaped time.Duration
}

// keep is the main function of a keeper. It returns the exit code.
func keep() int {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "keeper: become the reaper of orphans:", err)
		return 1
	}
	// A handled signal is back to its default after exec, an ignored one is not.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	k := &warden{}
	go func() {
		for range children {
			k.mu.Lock()
			k.reapLocked()
			k.mu.Unlock()
		}
	}()
	k.obey(os.Stdin, os.Stdout)
	if err := k.endAll(); err != nil {
		fmt.Fprintln(os.Stderr, "keeper:", err)
		return 1
	}
	return 0
}

func (k *warden) obey(in io.Reader, out io.Writer) {
	orders, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var o order
		if orders.Decode(&o) != nil {
			return
		}
		var a answer
		var err error
		if len(o.Args) > 0 {
			a.Pid, err = k.start(o)
		} else {
			a.Live, a.CPU, err = k.usage()
		}
		if err != nil {
			a.Error = err.Error()
		}
		if answers.Encode(a) != nil {
			return
		}
	}
}

func (k *warden) start(o order) (int, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	var env []string
	for _, v := range os.Environ() {
		if len(v) < len(envKeeper) || v[:len(envKeeper)] != envKeeper {
			env = append(env, v)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	// No session of its own: the scheduler gives each one the same share of a CPU (sched_autogroup,
	// sched(7)), and clients would wait tens of milliseconds for the end of the server's.
	pid, err := syscall.ForkExec(o.Args[0], o.Args, &syscall.ProcAttr{Env: append(env, o.Env...),
		Files: []uintptr{null.Fd(), 2, 2}, Sys: &syscall.SysProcAttr{Setpgid: true}})
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", o.Args[0], err)
	}
	return pid, nil
}

// reapLocked takes the children that have ended. It reports whether there are others.
func (k *warden) reapLocked() bool {
	for {
		var usage syscall.Rusage
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, &usage)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil: // ECHILD
			return false
		case pid == 0:
			return true
		default: // what the child had reaped itself is in its usage
			k.reaped += time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
		}
	}
}

// stat is what is needed of /proc/PID/stat.
type stat struct {
	zombie bool
	own    time.Duration
	reaped time.Duration // of children that it has waited for
}

// usage reads the keeper's tree, and nothing of other processes: it is asked beside the load.
func (k *warden) usage() (int, time.Duration, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reapLocked()
	self := os.Getpid()
	tree, err := process.Tree(self)
	if err != nil {
		return 0, 0, err
	}
	live, sum := 0, k.reaped
	for _, pid := range tree {
		if pid == self {
			continue
		}
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		p, ok := parseStat(line)
		if !ok {
			continue
		}
		if !p.zombie {
			live++
		}
		// The clock counts nanoseconds, clock_getcpuclockid(3): ~pid<<3 | CPUCLOCK_SCHED.
		var ts unix.Timespec
		if unix.ClockGettime(int32(^pid<<3|2), &ts) == nil {
			p.own = time.Duration(ts.Nano())
		}
		sum += p.own + p.reaped
	}
	return live, sum, nil
}

// parseStat reads a line of /proc/PID/stat. The name, in parentheses, may hold anything.
func parseStat(line []byte) (stat, bool) {
	fields := bytes.Fields(line[bytes.LastIndexByte(line, ')')+1:])
	if len(fields) < 15 {
		return stat{}, false
	}
	var n [15]int64
	for i := 1; i < len(n); i++ {
		n[i], _ = strconv.ParseInt(string(fields[i]), 10, 64)
	}
	return stat{fields[0][0] == 'Z', time.Duration(n[11]+n[12]) * tick, time.Duration(n[13]+n[14]) * tick}, true
}

// endAll kills children until there are none. Those of a killed one come to the keeper, so it only
// ever kills its own, whose pids can't have become somebody else's.
func (k *warden) endAll() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for until := time.Now().Add(keeperPatience / 2); k.reapLocked(); {
		if time.Now().After(until) {
			return errors.New("some processes can't be ended")
		}
		children, err := process.Children(os.Getpid())
		if err != nil {
			return err
		}
		for _, pid := range children {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}
