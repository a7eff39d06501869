package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	urfave "github.com/urfave/cli/v2"
)

// Main runs one command and returns its exit code. args[0] is the command's own name. A variable
// OVERLAP_… of the environment that is empty is the same as none, and is taken out of it.
func Main(args []string, stdout, stderr io.Writer) int {
	for _, kv := range os.Environ() {
		if name, value, _ := strings.Cut(kv, "="); value == "" && strings.HasPrefix(name, "OVERLAP_") {
			os.Unsetenv(name)
		}
	}
	p := &program{stdout: stdout, stderr: stderr}
	app := p.app()
	err := app.RunContext(context.Background(), arrange(args, app))
	if err == nil {
		return ExitOK
	}
	return p.complain(err)
}

// program is one run of the command.
type program struct {
	stdout, stderr io.Writer
	stateDir       string // --state-dir, "" where nobody chose one
	log            *slog.Logger
	counts         bool // connections are to be shown, so their count is asked for
}

func (p *program) app() *urfave.App {
	app := &urfave.App{
		Name:            "overlap",
		Usage:           "replace a running network server with its next version, and no client notices",
		UsageText:       "overlap [flags] COMMAND [flags] [arguments]",
		Version:         version(),
		HideHelpCommand: true,
		// A value may have commas in it, as a command has; see values.go.
		DisableSliceFlagSeparator: true,

		Writer:         p.stdout,
		ErrWriter:      p.stderr,
		ExitErrHandler: func(*urfave.Context, error) {}, // Main returns the code
		OnUsageError: func(c *urfave.Context, err error, sub bool) error {
			if errors.Is(err, flag.ErrHelp) { // --help is the library's only where the command help is too
				return urfave.ShowAppHelp(c)
			}
			return wrongUsage(c, err, sub)
		},
		Before: p.begin,
		Flags: []urfave.Flag{
			&urfave.StringFlag{Name: "state-dir", Usage: "where services are found: `DIR`", DefaultText: "the usual places"},
			&urfave.StringFlag{Name: "log-format", Value: "text", Usage: "how events are written to stderr: `text|json`"},
			&urfave.StringFlag{Name: "log-level", Value: "info", Usage: "the least important events to write: `debug|info|warn|error`"},
		},
		Action: func(c *urfave.Context) error {
			if c.Args().Present() {
				return unknownCommand(c)
			}
			return urfave.ShowAppHelp(c)
		},
	}
	withEnvironment(app.Flags, "")
	app.Commands = p.commands()
	for _, c := range app.Commands {
		c.OnUsageError = wrongUsage
		c.HideHelpCommand = true // a service may be called help
		c.CustomHelpTemplate = commandHelp
	}
	app.CustomAppHelpTemplate = appHelp
	return app
}

// commands are all of them, in the order of the help.
func (p *program) commands() []*urfave.Command {
	return []*urfave.Command{
		p.serveCommand(),
		p.runCommand(),
		p.reloadCommand(),
		p.statusCommand(),
		p.stopCommand(),
		p.benchCommand(),
		p.watchCommand(),
		helpCommand(),
	}
}

// begin reads the global flags.
func (p *program) begin(c *urfave.Context) error {
	p.stateDir = c.String("state-dir")
	var level slog.Level
	if name := c.String("log-level"); level.UnmarshalText([]byte(name)) != nil {
		return badValue(c, "log-level", name, "debug, info, warn or error")
	}
	options := &slog.HandlerOptions{Level: level}
	switch format := c.String("log-format"); format {
	case "text":
		p.log = slog.New(slog.NewTextHandler(p.stderr, options))
	case "json":
		p.log = slog.New(slog.NewJSONHandler(p.stderr, options))
	default:
		return badValue(c, "log-format", format, "text or json")
	}
	slog.SetDefault(p.log)
	return nil
}

func helpCommand() *urfave.Command {
	return &urfave.Command{
		Name: "help", Aliases: []string{"h"}, Usage: "show the help of overlap or of one command", ArgsUsage: "[COMMAND]",
		Action: func(c *urfave.Context) error {
			name := c.Args().First()
			if name == "" {
				return urfave.ShowAppHelp(c.Lineage()[1])
			}
			if c.App.Command(name) == nil {
				return unknownCommand(c)
			}
			return urfave.ShowCommandHelp(c.Lineage()[1], name)
		},
	}
}

// withEnvironment gives every flag its environment variable.
func withEnvironment(flags []urfave.Flag, command string) []urfave.Flag {
	for _, f := range flags {
		vars := []string{environment(command, f.Names()[0])}
		switch f := f.(type) {
		case *urfave.StringFlag:
			f.EnvVars = vars
		case *urfave.StringSliceFlag:
			f.EnvVars = vars
		case *urfave.BoolFlag:
			f.EnvVars = vars
		case *urfave.IntFlag:
			f.EnvVars = vars
		case *urfave.Float64Flag:
			f.EnvVars = vars
		case *urfave.DurationFlag:
			f.EnvVars = vars
		default:
			panic(fmt.Sprintf("flag of type %T", f))
		}
	}
	return flags
}

// environment names the variable of a flag: OVERLAP_LISTEN is serve's --listen, and
// OVERLAP_RELOAD_TIMEOUT reload's --timeout.
func environment(command, flag string) string {
	name := "OVERLAP_"
	if command != "" && command != "serve" {
		name += command + "_"
	}
	return strings.ToUpper(strings.NewReplacer("-", "_").Replace(name + flag))
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	if v == "" {
		v = "(devel)"
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			v += " " + s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			v += " (modified)"
		}
	}
	return fmt.Sprintf("%s %s %s/%s", v, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// noArguments is the check of a command that takes none.
func noArguments(c *urfave.Context) error {
	if c.Args().Present() {
		return unexpected(c, c.Args().First())
	}
	return nil
}

// environ is this process's environment without what is meant for overlap.
func environ() []string {
	var kept []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "OVERLAP_") {
			kept = append(kept, kv)
		}
	}
	return kept
}

var errInterrupted = errors.New("interrupted")

const appHelp = `{{.Name}}: {{.Usage}}

Usage: {{.UsageText}}

Commands:{{range .VisibleCommands}}
   {{join .Names ", "}}{{"\t"}}{{.Usage}}{{end}}

Flags, before or after the command:{{range .VisibleFlags}}
   {{.}}{{end}}

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not running.
Help of one command: overlap help COMMAND
`

const commandHelp = `{{.HelpName}}: {{.Usage}}

Usage: {{if .UsageText}}{{.UsageText}}{{else}}{{.HelpName}} [flags] {{.ArgsUsage}}{{end}}
{{if .Description}}
{{.Description}}
{{end}}{{if .VisibleFlags}}
Flags:{{range .VisibleFlags}}
   {{.}}{{end}}
{{end}}`
