package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// The keeper is this program again, as the parent of all that a rival starts. Orphans come back to
// it, so it can say what CPU time the whole tree has used, those that have ended included, and can
// end each process with its own child's pid, which nobody else can have. It obeys lines of JSON on
// its standard input, and ends everything when that is closed.

// envKeeper makes this program a keeper.
const envKeeper = "OVERLAP_COMPARE_KEEPER"

// keeperPatience is how long a keeper may take for an answer or for ending everything.
const keeperPatience = 20 * time.Second

// order is what a keeper is told: start something, or else tell how things are.
type order struct {
	Args []string `json:"args,omitempty"`
	Env  []string `json:"env,omitempty"` // added to the keeper's own
}

// answer is what it says.
type answer struct {
	Pid   int           `json:"pid,omitempty"`  // that was started
	Live  int           `json:"live,omitempty"` // processes below the keeper
	CPU   time.Duration `json:"cpu,omitempty"`  // user and system time of all that lived below it
	Error string        `json:"error,omitempty"`
}

// keeper is the other end: what speaks to one. It is not safe for concurrent use.
type keeper struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *os.File
	say *json.Encoder
	get *json.Decoder
}

// newKeeper starts one. What its processes say goes to log.
func newKeeper(dir string, log *os.File) (*keeper, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	out, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	cmd := exec.Command(self)
	cmd.Args[0] = os.Args[0]
	cmd.Dir = dir
	cmd.Env = append(cleanEnviron(), envKeeper+"=1")
	cmd.Stdout, cmd.Stderr = w, log
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		out.Close()
		return nil, fmt.Errorf("start the keeper: %w", err)
	}
	return &keeper{cmd, in, out, json.NewEncoder(in), json.NewDecoder(out)}, nil
}

func (k *keeper) ask(o order) (answer, error) {
	var a answer
	k.out.SetReadDeadline(time.Now().Add(keeperPatience))
	err := k.say.Encode(o)
	if err == nil {
		err = k.get.Decode(&a)
	}
	if err != nil {
		return a, fmt.Errorf("ask the keeper: %w", err)
	}
	if a.Error != "" {
		return a, fmt.Errorf("%s", a.Error)
	}
	return a, nil
}

// start starts a program and returns its pid.
func (k *keeper) start(args []string, env ...string) (int, error) {
	a, err := k.ask(order{Args: args, Env: env})
	return a.Pid, err
}

// usage tells how many processes live, and what CPU time was used so far.
func (k *keeper) usage() (answer, error) { return k.ask(order{}) }

// close ends every process below the keeper, and the keeper.
func (k *keeper) close() error {
	k.in.Close()
	defer k.out.Close()
	late := time.AfterFunc(keeperPatience, func() { k.cmd.Process.Kill() })
	defer late.Stop()
	if err := k.cmd.Wait(); err != nil {
		return fmt.Errorf("end the rival's processes: %w", err)
	}
	return nil
}

// cleanEnviron is the environment without what a service manager or launcher above us left in it.
func cleanEnviron() []string {
	var env []string
	for _, v := range os.Environ() {
		if !managed.MatchString(v) {
			env = append(env, v)
		}
	}
	return env
}
