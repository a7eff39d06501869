package cli

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	urfave "github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"overlap/health"
	"overlap/lifecycle/launcher"
	"overlap/lifecycle/state"
)

// splitCommand splits the arguments of a command at the first "--": what is before it, and a
// program's command line behind it. The last is nil where there is no "--".
func splitCommand(args []string) (before, command []string) {
	i := slices.Index(args, "--")
	if i < 0 {
		return args, nil
	}
	return args[:i], args[i+1:]
}

func (p *program) runCommand() *urfave.Command {
	return &urfave.Command{
		Name:      "run",
		Usage:     "start any program so that its next version takes over without loss",
		ArgsUsage: "[--] COMMAND [ARGS...]",
		Description: "Starts the program, has its port shared, checks it, and gives it the connections. Started a\n" +
			"second time under the same name, it takes over from the first. SIGHUP starts the next\n" +
			"generation, SIGTERM and SIGINT drain and end. A time of 0 is none: no limit, no delay.\n" +
			"Exit codes: the program's own, 128+n for signal n, 125 overlap's own failure, 126 not executable, 127 not found.",
		Flags: withEnvironment([]urfave.Flag{
			&urfave.StringFlag{Name: "name", Usage: "the service's `NAME`", DefaultText: "the command's base name"},
			&urfave.StringSliceFlag{Name: "listen", Usage: "`ADDRESS` that makes it ready, host:port or udp:host:port; may be repeated", DefaultText: "all that the running generation listens on, else the first"},
			&urfave.StringSliceFlag{Name: "health", Usage: "`PROBE` to pass: /path, http://, https://, tcp, grpc://, exec:COMMAND, notify, none; may be repeated", DefaultText: "tcp"},
			&urfave.StringFlag{Name: "health-ca", Usage: "`FILE` with the certificates that https probes trust"},
			&urfave.BoolFlag{Name: "health-insecure", Usage: "https probes accept any certificate"},
			&urfave.DurationFlag{Name: "start-timeout", Value: launcher.DefaultStartTimeout, Usage: "until a generation that is not healthy is given up"},
			&urfave.DurationFlag{Name: "stop-delay", Value: launcher.DefaultStopDelay, Usage: "what established connections get to end before the stop signal"},
			&urfave.StringFlag{Name: "stop-signal", Value: "TERM", Usage: "`SIGNAL` that ends the program"},
			&urfave.DurationFlag{Name: "drain-timeout", Value: launcher.DefaultDrainTimeout, Usage: "from the switch or stop until the program is killed"},
			&urfave.StringFlag{Name: "restart", Value: string(launcher.DefaultRestart), Usage: "when a program that ended is started again: `no|on-failure|always`"},
			&urfave.DurationFlag{Name: "hold", Value: launcher.DefaultHold, Usage: "how long clients of a program that crashed are kept waiting"},
			&urfave.StringFlag{Name: "reuse", Value: "auto", Usage: "who sets SO_REUSEPORT: overlap, or the program: `auto|off`"},
			&urfave.StringFlag{Name: "chdir", Usage: "`DIR` to start the program in"},
			&urfave.StringFlag{Name: "env-file", Usage: "`FILE` with more variables, read anew for each generation"},
			&urfave.StringSliceFlag{Name: "pass-signal", Usage: "`SIGNAL` to pass on to the program, such as HUP; may be repeated"},
			&urfave.IntFlag{Name: "adopt", Usage: "`PID` of a running server to take over from"},
		}, "run"),
		Action: p.run,
	}
}

// doingRun is the operation of a launcher, as its errors name it.
const doingRun = "run"

func (p *program) run(c *urfave.Context) error {
	o, err := p.readRun(c)
	if err != nil {
		return err
	}
	if err := launcher.Run(c.Context, *o); err != nil {
		name := o.Name
		if name == "" {
			name = state.DefaultName(o.Command[0])
		}
		return &failure{doingRun, name, err}
	}
	return nil
}

func (p *program) readRun(c *urfave.Context) (*launcher.Options, error) {
	o := &launcher.Options{Name: c.String("name"), StateDir: p.stateDir, Command: c.Args().Slice(),
		Dir: c.String("chdir"), EnvFile: c.String("env-file"), Listen: c.StringSlice("listen"),
		Adopt: c.Int("adopt"), Log: p.log}
	if len(o.Command) > 0 && o.Command[0] == "--" {
		o.Command = o.Command[1:]
	}
	if len(o.Command) == 0 {
		return nil, &usageError{"run: no command", "say what to run: overlap run -- COMMAND ARGS"}
	}
	if o.Name != "" {
		if err := state.ValidName(o.Name); err != nil {
			return nil, badValue(c, "name", o.Name, err.Error())
		}
	}
	for flag, to := range map[string]*time.Duration{"start-timeout": &o.StartTimeout, "stop-delay": &o.StopDelay,
		"drain-timeout": &o.DrainTimeout, "hold": &o.Hold} {
		d := c.Duration(flag)
		if d < 0 {
			return nil, badValue(c, flag, d.String(), "0 or more")
		}
		if *to = d; d == 0 {
			*to = -1
		}
	}
	for _, addr := range o.Listen {
		if network, _, err := parseListen(addr); err != nil || network == "unix" {
			return nil, badValue(c, "listen", addr, "host:port or udp:host:port")
		}
	}
	var err error
	if o.StopSignal, err = parseSignal(c.String("stop-signal")); err != nil {
		return nil, badValue(c, "stop-signal", c.String("stop-signal"), err.Error())
	}
	for _, name := range c.StringSlice("pass-signal") {
		s, err := parseSignal(name)
		if err != nil {
			return nil, badValue(c, "pass-signal", name, err.Error())
		}
		o.PassSignals = append(o.PassSignals, s)
	}
	if o.Restart, err = launcher.ParseRestart(c.String("restart")); err != nil {
		return nil, badValue(c, "restart", c.String("restart"), "no, on-failure or always")
	}
	switch reuse := c.String("reuse"); reuse {
	case "auto":
	case "off":
		o.NoReuse = true
	default:
		return nil, badValue(c, "reuse", reuse, "auto or off")
	}
	for _, spec := range c.StringSlice("health") {
		s, err := health.Parse(spec, health.Options{CAFile: c.String("health-ca"), Insecure: c.Bool("health-insecure")})
		if err != nil {
			return nil, badValue(c, "health", spec, err.Error())
		}
		o.Probes = append(o.Probes, s)
	}
	return o, nil
}

// parseSignal reads a signal's name, with or without SIG.
func parseSignal(name string) (syscall.Signal, error) {
	upper := strings.ToUpper(name)
	if !strings.HasPrefix(upper, "SIG") {
		upper = "SIG" + upper
	}
	if s := unix.SignalNum(upper); s != 0 {
		return s, nil
	}
	return 0, fmt.Errorf("a signal's name, such as TERM or QUIT")
}
