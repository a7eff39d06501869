package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"syscall"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	urfave "github.com/urfave/cli/v2"

	"overlap/lifecycle/control"
	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
)

// outcomeUnknown is in the JSON of a reload whose end was not seen.
const outcomeUnknown = "unknown"

func (p *program) reloadCommand() *urfave.Command {
	return &urfave.Command{
		Name:      "reload",
		Usage:     "start the next generation of a running service and have it take over",
		UsageText: "overlap reload [flags] [NAME] [-- COMMAND [ARGUMENTS]]",
		Description: "Exits with 0 when the new generation serves. When it fails, the old one serves on. The\n" +
			"service's own command is started again; one behind -- takes its place. Ctrl-C stops\n" +
			"watching, not the handover.",
		Flags: withEnvironment([]urfave.Flag{
			&urfave.DurationFlag{Name: "timeout", Usage: "how long the new generation may take to serve", DefaultText: "the service's own"},
			&urfave.StringFlag{Name: "wait", Value: control.WaitSwitched, Usage: "until the new generation serves, or the old one has ended too: `switched|drained`"},
			&urfave.BoolFlag{Name: "json", Usage: "print the outcome as JSON"},
		}, "reload"),
		Action: p.reload,
	}
}

func (p *program) reload(c *urfave.Context) error {
	before, command := splitCommand(c.Args().Slice())
	name, err := oneName(c, before)
	if err != nil {
		return err
	}
	req, err := reloadRequest(c, command)
	if err != nil {
		return err
	}
	s, err := p.service(c.Context, "reload", name)
	if err != nil {
		return err
	}
	defer s.close()
	ctx, stop := interruptible(c.Context)
	defer stop()
	doing := "reload " + s.name
	g, err := s.serving()
	if err != nil {
		return &failure{doing, s.name, err}
	}
	progress := newProgress(p.stderr, s.name)
	out, err := s.client(g).Reload(ctx, req, progress.event)
	progress.end()
	if ctx.Err() != nil && err != nil {
		err = errUnwatched
	}
	if err != nil {
		out = control.Outcome{Service: s.name, From: g.Generation.Generation, Outcome: outcomeUnknown, Reason: err.Error()}
	}
	if c.Bool("json") {
		if err := p.print(out); err != nil {
			return err
		}
	}
	switch {
	case err != nil:
		return &failure{doing, s.name, err}
	case out.Outcome != control.OutcomeSwitched:
		return &failure{doing, s.name, &reloadError{out.Reason}}
	case !c.Bool("json"):
		fmt.Fprintln(p.stdout, process.Printable(wordsOfReload(out)))
	}
	return nil
}

func reloadRequest(c *urfave.Context, command []string) (control.ReloadRequest, error) {
	req := control.ReloadRequest{Timeout: c.Duration("timeout"), Wait: c.String("wait"), Command: command}
	if req.Timeout < 0 {
		return req, badValue(c, "timeout", req.Timeout.String(), "0 or more")
	}
	if req.Wait != control.WaitSwitched && req.Wait != control.WaitDrained {
		return req, badValue(c, "wait", req.Wait, "switched or drained")
	}
	if len(command) > 0 {
		dir, err := os.Getwd() // by its name in $PWD, where that is right
		if err != nil {
			return req, fmt.Errorf("find the working directory: %w", err)
		}
		req.Directory = dir
	} else if command != nil {
		return req, &usageError{"reload: no command behind --", "see its usage: overlap help reload"}
	}
	return req, nil
}

// oneName reads [NAME].
func oneName(c *urfave.Context, args []string) (string, error) {
	switch {
	case len(args) > 1:
		return "", unexpected(c, args[1])
	case len(args) == 0:
		return "", nil
	}
	if err := state.ValidName(args[0]); err != nil {
		return "", &usageError{fmt.Sprintf("%s: %s", c.Command.Name, err), "see what runs: overlap status"}
	}
	return args[0], nil
}

// interruptible is a context that ends at Ctrl-C or SIGTERM.
func interruptible(parent context.Context) (context.Context, func()) {
	return endedBy(parent, syscall.SIGINT, syscall.SIGTERM)
}

// print writes JSON to stdout, one line.
func (p *program) print(v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		_, err = fmt.Fprintf(p.stdout, "%s\n", escaped(data))
	}
	if err != nil {
		return fmt.Errorf("write the outcome: %w", err)
	}
	return nil
}

// escaped is JSON with what a terminal may act on as \u…, beside what package json writes so.
func escaped(data []byte) []byte {
	var out []byte
	for _, r := range string(data) {
		if unicode.IsPrint(r) {
			out = utf8.AppendRune(out, r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			out = fmt.Appendf(out, `\u%04x`, unit)
		}
	}
	return out
}
