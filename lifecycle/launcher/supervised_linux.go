package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"overlap/lifecycle/control"
	"overlap/lifecycle/owner"
	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
)

// supervised reports whether this process must not exit: it is PID 1, a service manager's main
// process, or what a container's init (docker run --init) was given to run.
func supervised() bool {
	return os.Getpid() == 1 || os.Getenv("SYSTEMD_EXEC_PID") == fmt.Sprint(os.Getpid()) || bornOf == 1 && inContainer()
}

// bornOf is the parent that started this process; later it may be another one.
var bornOf = os.Getppid()

// inContainer reports whether this is another PID namespace than the machine's first, which has
// a fixed number (PROC_PID_INIT_INO, linux/proc_ns.h).
func inContainer() bool {
	to, err := os.Readlink("/proc/self/ns/pid")
	return err == nil && to != "pid:[4026531836]"
}

// asReload gives all that this launcher was told to the one that must not exit, and follows.
func (l *launcher) asReload(ctx context.Context) error {
	dir, err := state.Find(l.root, l.opt.Name)
	if err != nil {
		return &ExitError{ExitOwnFailure, err}
	}
	defer dir.Close()
	records, _ := dir.Generations()
	for _, r := range records {
		if r.State != state.Serving || !dir.Owned(r.Generation) {
			continue
		}
		l.log.Info("the running launcher is supervised, it is asked to reload", "pid", r.Owner.PID)
		if err := l.request(ctx, control.Dial(dir.SocketPath(r.Generation))); err != nil {
			return &ExitError{1, err}
		}
		return nil
	}
	return &ExitError{1, owner.ErrSupervised}
}

// request asks for a reload; nothing of it may be left aside without a word.
func (l *launcher) request(ctx context.Context, to *control.Client) error {
	req := control.ReloadRequest{Command: l.opt.Command, Directory: l.dir, Env: l.env, Settings: l.settingsToSend()}
	if req.Settings != nil {
		status, err := to.Status(ctx)
		if err != nil {
			return err
		}
		if !slices.Contains(status.Takes, control.TakesSettings) {
			return ErrOldLauncher
		}
		req.Timeout = l.startTimeout()
	}
	out, err := to.Reload(ctx, req, func(e control.Event) {
		if !e.Final { // that one is the outcome
			l.log.Info("reload", "step", e.Kind, "next", e.Generation)
		}
	})
	switch cause := context.Cause(ctx); {
	case err != nil && cause != nil:
		return cause
	case err != nil:
		return err
	case out.Outcome != control.OutcomeSwitched:
		return errors.New(out.Reason)
	}
	return nil
}

// settingsToSend are the settings that were given, with files as who reads them elsewhere finds them; nil where
// none was.
func (l *launcher) settingsToSend() *Settings {
	s := l.set.given
	for _, file := range []*string{&s.EnvFile, &s.HealthCA} {
		if *file != "" && !filepath.IsAbs(*file) {
			*file = filepath.Join(process.WorkingDirectory(), *file)
		}
	}
	if reflect.ValueOf(s).IsZero() {
		return nil
	}
	return &s
}

// startTimeout is what was asked for; 0 is nothing.
func (l *launcher) startTimeout() time.Duration {
	if l.set.given.StartTimeout == 0 {
		return 0
	}
	return l.set.StartTimeout
}
