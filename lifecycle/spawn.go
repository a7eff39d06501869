package lifecycle

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"overlap/lifecycle/control"
)

// envHandover carries the token of the generation that starts the next one.
const envHandover = "OVERLAP_HANDOVER"

// child is the next generation as a process of this one.
type child struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

func (c *child) Done() <-chan struct{} { return c.done }
func (c *child) Err() error            { return c.err }
func (c *child) Kill()                 { c.cmd.Process.Kill() }

// errPID1 says why PID 1 can't replace itself.
var errPID1 = errors.New("PID 1 can't replace itself: when it exits, its container ends; start the server with: overlap run -- COMMAND")

// errNoLauncher refuses what only a launcher knows.
var errNoLauncher = errors.New("the flags of overlap run are for a service that it started")

// spawn starts the next generation: the same arguments and environment, the program looked up
// anew and the directory by its name, so that a replaced binary or a moved link is picked up.
func spawn(g *Generation, req control.ReloadRequest, token string) (*child, error) {
	if os.Getpid() == 1 {
		return nil, errPID1
	}
	if req.Settings != nil {
		return nil, errNoLauncher
	}
	args := os.Args
	if len(req.Command) > 0 {
		args = req.Command
	}
	dir := g.dir
	if req.Directory != "" {
		dir = req.Directory
	}
	path, err := lookUp(args[0], dir)
	if err != nil {
		return nil, err
	}
	env := os.Environ()
	if req.Env != nil {
		env = req.Env
	}
	cmd := &exec.Cmd{Path: path, Args: args, Dir: dir, Env: append(env, envHandover+"="+token, "PWD="+dir),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the next generation: %w", err)
	}
	c := &child{cmd: cmd, done: make(chan struct{})}
	go func() { c.err = cmd.Wait(); close(c.done) }()
	return c, nil
}

// lookUp finds the program. One that is gone, as `go run` leaves it, is taken from memory.
func lookUp(name, dir string) (string, error) {
	if strings.ContainsRune(name, filepath.Separator) {
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		_, err := os.Stat(path)
		if err == nil {
			return path, nil
		}
		if self, lerr := os.Readlink("/proc/self/exe"); lerr == nil && name == os.Args[0] && strings.HasSuffix(self, " (deleted)") {
			return "/proc/self/exe", nil
		}
		return "", fmt.Errorf("start the next generation: %w", err)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("start the next generation: %w", err)
	}
	return path, nil
}
