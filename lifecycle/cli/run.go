package cli

import (
	"errors"
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
			&urfave.StringSliceFlag{Name: "listen", Usage: "`ADDRESS` that makes it ready, host:port or udp:host:port; may be repeated, or several with commas", DefaultText: "all that the running generation listens on, else the first"},
			&urfave.StringSliceFlag{Name: "health", Usage: "`PROBE` to pass: /path, http://, https://, tcp, grpc://, exec:COMMAND, notify, none; may be repeated, in the variable one a line", DefaultText: "tcp"},
			&urfave.StringFlag{Name: "health-ca", Usage: "`FILE` with the certificates that https probes trust"},
			&urfave.BoolFlag{Name: "health-insecure", Usage: "https probes accept any certificate"},
			&urfave.DurationFlag{Name: "start-timeout", Value: launcher.DefaultStartTimeout, Usage: "until a generation that is not healthy is given up"},
			&urfave.DurationFlag{Name: "stop-delay", Value: launcher.DefaultStopDelay, Usage: "what established connections get to end before the stop signal; in its last fifth kept ones are ended in a pause between two requests"},
			&urfave.StringFlag{Name: "stop-signal", Value: "TERM", Usage: "`SIGNAL` that ends the program"},
			&urfave.DurationFlag{Name: "drain-timeout", Value: launcher.DefaultDrainTimeout, Usage: "from the switch or stop until the program is killed"},
			&urfave.StringFlag{Name: "restart", Value: string(launcher.DefaultRestart), Usage: "when a program that ended is started again: `no|on-failure|always`"},
			&urfave.DurationFlag{Name: "hold", Value: launcher.DefaultHold, Usage: "how long clients of a program that crashed are kept waiting"},
			&urfave.StringFlag{Name: "reuse", Value: launcher.ReuseAuto, Usage: "who sets SO_REUSEPORT: overlap, or the program: `auto|off`"},
			&urfave.StringFlag{Name: "chdir", Usage: "`DIR` to start the program in"},
			&urfave.StringFlag{Name: "env-file", Usage: "`FILE` with more variables, read anew for each generation"},
			&urfave.StringSliceFlag{Name: "pass-signal", Usage: "`SIGNAL` to pass on to the program, such as HUP; may be repeated, or several with commas"},
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
		if o.Reuse == launcher.ReuseOff {
			err = &aloneError{err}
		}
		return &failure{doingRun, name, err}
	}
	return nil
}

func (p *program) readRun(c *urfave.Context) (*launcher.Options, error) {
	o := &launcher.Options{Name: c.String("name"), StateDir: p.stateDir, Command: c.Args().Slice(),
		Dir: c.String("chdir"), Adopt: c.Int("adopt"), Log: p.log}
	if len(o.Command) > 0 && o.Command[0] == "--" {
		o.Command = o.Command[1:]
	}
	if len(o.Command) == 0 {
		return nil, &usageError{"run: no command", "say what to run: overlap run -- COMMAND ARGS"}
	}
	if o.Name != "" {
		if err := state.ValidName(o.Name); err != nil {
			return nil, refused(c, "name", o.Name, err.Error())
		}
	}
	if c.IsSet("adopt") && o.Adopt <= 0 {
		return nil, badValue(c, "adopt", fmt.Sprint(o.Adopt), "the pid of a running server")
	}
	var err error
	if o.Settings, err = readSettings(c); err != nil {
		return nil, err
	}
	return o, nil
}

// readSettings reads the flags that were given. The others keep their zero values, since a
// running launcher that is given these may have them otherwise.
func readSettings(c *urfave.Context) (launcher.Settings, error) {
	s := launcher.Settings{EnvFile: c.String("env-file"), Listen: list(c, "listen"), Health: lines(c, "health"),
		HealthCA: c.String("health-ca"), HealthInsecure: c.Bool("health-insecure")}
	for flag, to := range map[string]*time.Duration{"start-timeout": &s.StartTimeout, "stop-delay": &s.StopDelay,
		"drain-timeout": &s.DrainTimeout, "hold": &s.Hold} {
		d := c.Duration(flag)
		switch {
		case !c.IsSet(flag):
		case d < 0:
			return s, badValue(c, flag, d.String(), "0 or more")
		case d == 0:
			*to = -1
		default:
			*to = d
		}
	}
	for _, addr := range s.Listen {
		if _, err := parseReady(addr); err != nil {
			return s, badValue(c, "listen", addr, err.Error())
		}
	}
	var err error
	if name := c.String("stop-signal"); c.IsSet("stop-signal") {
		if s.StopSignal, err = parseSignal(name); err != nil {
			return s, badValue(c, "stop-signal", name, err.Error())
		}
	}
	for _, name := range list(c, "pass-signal") {
		sig, err := parseSignal(name)
		if err != nil {
			return s, badValue(c, "pass-signal", name, err.Error())
		}
		if err := launcher.Passable(sig); err != nil {
			return s, refused(c, "pass-signal", name, err.Error())
		}
		s.PassSignals = append(s.PassSignals, sig)
	}
	if restart := c.String("restart"); c.IsSet("restart") {
		if _, err := launcher.ParseRestart(restart); err != nil {
			return s, badValue(c, "restart", restart, "no, on-failure or always")
		}
		s.Restart = restart
	}
	if reuse := c.String("reuse"); c.IsSet("reuse") {
		if reuse != launcher.ReuseAuto && reuse != launcher.ReuseOff {
			return s, badValue(c, "reuse", reuse, "auto or off")
		}
		s.Reuse = reuse
	}
	return s, checkHealth(c, s)
}

// checkHealth refuses probes that no program could pass.
func checkHealth(c *urfave.Context, s launcher.Settings) error {
	o := health.Options{CAFile: s.HealthCA, Insecure: s.HealthInsecure}
	if _, err := health.Parse(health.KindNone, o); err != nil {
		if s.HealthInsecure && s.HealthCA != "" {
			return &usageError{"run: --health-ca and --health-insecure exclude each other", "see its usage: " + helpOf(c.Command.Name)}
		}
		return refused(c, "health-ca", s.HealthCA, err.Error())
	}
	for _, text := range s.Health {
		spec, err := health.Parse(text, o)
		if err != nil {
			return refused(c, "health", text, errors.Unwrap(err).Error()) // without the text, which is said
		}
		if spec.Kind() == health.KindNone && len(s.Health) > 1 {
			return &usageError{"run: --health none and other probes exclude each other", "see its usage: " + helpOf(c.Command.Name)}
		}
		if err := spec.Missing(); err != nil {
			return refused(c, "health", text, err.Error())
		}
	}
	return nil
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
