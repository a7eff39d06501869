package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"syscall"
	"time"

	urfave "github.com/urfave/cli/v2"
	"github.com/xrash/smetrics"

	"overlap/lifecycle"
	"overlap/lifecycle/bench"
	"overlap/lifecycle/control"
	"overlap/lifecycle/launcher"
	"overlap/lifecycle/owner"
	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
	"overlap/reuse"
)

// All words that overlap says to a person, but for the events of the log and the help.
//
//   - Everything begins with "overlap: ", so that it can be told from what a server says.
//   - An error is one line: "overlap: error: ", the operation, the reason; lowercase, no full stop.
//   - A hint follows where there is something to do: "overlap: hint: ", why, a colon, and one
//     command that can be pasted.
//   - A warning is about something that was left aside: "overlap: warning: ".
//   - A command names the service that it is about.
//   - Numbers have units.
//   - What is said has one place: an outcome is not an event and an error too.
//   - What a service says, or another user has called a directory, writes nothing but text to the terminal.

// The exit codes.
const (
	ExitOK         = 0 // what was asked for has happened
	ExitFailed     = 1
	ExitUsage      = 2 // the command line or an environment variable is wrong
	ExitNotRunning = 3 // there is no such service
)

// failure is an error that a command ends with, and what the words about it need to know.
type failure struct {
	doing   string // the operation, such as "reload serve"
	service string
	err     error
}

func (f *failure) Error() string { return f.doing + ": " + f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// usageError is a wrong command line.
type usageError struct{ text, hint string }

func (e *usageError) Error() string { return e.text }

// Errors of what runs, and of commands.
var (
	errNotRunning = errors.New("not running")
	errNotServing = errors.New("no generation serves")
	errNoAnswer   = errors.New("does not answer")
	errNoLauncher = errors.New("its launcher is dead")
	errStillThere = errors.New("still there")
	errUnwatched  = errors.New("no longer watched, the handover goes on")
	errLoss       = errors.New("clients noticed")
	// errReadiness is a loss that may well be meant.
	errReadiness = fmt.Errorf("%w status 503 and nothing else", errLoss)
)

// aloneError is of a program that was to share its port by itself: --reuse off.
type aloneError struct{ error }

func (e *aloneError) Unwrap() error { return e.error }

// reloadError is a handover that failed: its reason in the words of who made it.
type reloadError struct{ reason string }

func (e *reloadError) Error() string { return e.reason }

// ambiguousError is a command without NAME, or with one that is not enough.
type ambiguousError struct {
	command string
	name    string   // "" where none was given
	choices []string // names, or the state directories of name
}

func (e *ambiguousError) Error() string {
	if e.name == "" {
		return "several services run: " + strings.Join(e.choices, ", ")
	}
	return fmt.Sprintf("several services are called %s, in %s", e.name, strings.Join(e.choices, ", "))
}

func (e *ambiguousError) hint() string {
	if e.name == "" {
		return fmt.Sprintf("name one of them: overlap %s %s", e.command, e.choices[0])
	}
	return fmt.Sprintf("name its state directory: overlap --state-dir %s %s %s", quoteForShell(e.choices[0]), e.command, e.name)
}

// complain says an error and returns its exit code.
func (p *program) complain(err error) int {
	text, hint, code := explain(err)
	fmt.Fprintf(p.stderr, "overlap: error: %s\n", process.Printable(text))
	if hint != "" {
		fmt.Fprintf(p.stderr, "overlap: hint: %s\n", process.Printable(hint))
	}
	return code
}

// warn says what was left aside.
func (p *program) warn(err error) {
	fmt.Fprintf(p.stderr, "overlap: warning: %s\n", process.Printable(oneLine(err.Error())))
}

// explain turns an error into words and an exit code.
func explain(err error) (text, hint string, code int) {
	text, code = oneLine(err.Error()), ExitFailed
	name, again := "NAME", "serve"
	elsewhere := "overlap serve --listen :8081"
	var f *failure
	if errors.As(err, &f) && f.service != "" {
		name = f.service
	}
	if f != nil && f.doing == doingRun {
		again, elsewhere = "run -- COMMAND", "ss -ltnp" // where it listens is the program's own affair
	}
	var usage *usageError
	var ambiguous *ambiguousError
	var op *net.OpError
	var reload *reloadError
	switch {
	case errors.As(err, &usage):
		hint, code = usage.hint, ExitUsage
	case errors.As(err, &ambiguous):
		hint, code = ambiguous.hint(), ExitUsage
	case errors.Is(err, errNotRunning):
		code = ExitNotRunning
		hint = "start a file server: overlap serve"
		if name != "NAME" {
			hint = "see what runs: overlap status"
		}
	case errors.As(err, &reload):
		hint = "the old generation serves on, see it with: overlap status " + name
	case errors.Is(err, errUnwatched):
		hint = "see how far it is: overlap status " + name
	case errors.Is(err, errNotServing), errors.Is(err, control.ErrNoOutcome):
		hint = "see what there is: overlap status " + name
	case errors.Is(err, errNoAnswer):
		hint = "end it, its connections too: overlap stop " + name
	case errors.Is(err, errNoLauncher):
		hint = fmt.Sprintf("take over from its program: overlap run --name %s -- COMMAND", name)
	case errors.Is(err, errStillThere):
		hint = "see what is left: overlap status " + name
	case errors.Is(err, errReadiness):
		hint = "a path that tells readiness says 503 while a generation drains, ask for another: overlap bench --path /"
	case errors.Is(err, errLoss):
		// The table says it.
	case errors.Is(err, lifecycle.ErrStranger):
		hint = "listen elsewhere, or end that process first: " + elsewhere
	case errors.Is(err, reuse.ErrDevice):
		hint = "see the device's addresses, and listen on one of them: ip address"
	case errors.Is(err, lifecycle.ErrOverlap):
		hint = "listen on the same address, or end the service first: overlap stop " + name
	case errors.Is(err, lifecycle.ErrOther):
		verb, command, _ := strings.Cut(again, " ")
		hint = strings.TrimSpace("give the new service a name of its own: overlap " + verb + " --name OTHER " + command)
	case errors.Is(err, launcher.ErrNotShared) && errors.As(err, new(*aloneError)):
		hint = "turn the option on in the program, or have overlap do it: overlap run --reuse auto -- COMMAND"
	case errors.Is(err, launcher.ErrNotShared):
		hint = "start it so that it does, and leave that to it: overlap run --reuse off -- COMMAND"
	case errors.Is(err, launcher.ErrUnseen):
		hint = "give overlap that access, or start the container as that user (--user): docker run --cap-add SYS_PTRACE IMAGE"
	case errors.Is(err, launcher.ErrOldLauncher):
		hint = "give it the command alone: overlap reload " + name + " -- COMMAND"
	case errors.Is(err, lifecycle.ErrSupervised):
		hint = "have it replace itself: overlap reload " + name
	case errors.Is(err, lifecycle.ErrBusy), errors.Is(err, owner.ErrBusy):
		hint = "see how far the other one is: overlap status " + name
	case errors.Is(err, lifecycle.ErrCut):
		hint = "give connections more time: overlap serve --drain-timeout 60s"
	case errors.Is(err, lifecycle.ErrUnhealthy):
		hint = "an old generation serves on, if there was one: overlap status " + name
	case errors.Is(err, state.ErrRecord):
		hint = "a record is only needed while its generation runs: overlap status " + name
	case errors.As(err, &op) && errors.Is(err, syscall.EACCES),
		errors.Is(err, syscall.EACCES) && strings.Contains(text, "bind"):
		hint = "ports below 1024 are for root or CAP_NET_BIND_SERVICE, take another: overlap serve --listen :8080"
		if again != "serve" {
			hint = "ports below 1024 are for root or CAP_NET_BIND_SERVICE, see who you are: id"
		}
	case errors.Is(err, syscall.EADDRINUSE):
		hint = "see who listens: ss -ltnp"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		hint = "see this machine's addresses: ip address"
	case errors.Is(err, fs.ErrPermission) && strings.Contains(text, "can be written by others"):
		hint = "take that right away: chmod go-w " + directoryIn(text)
	case errors.Is(err, fs.ErrPermission) && strings.Contains(text, "belongs to"):
		hint = `keep state elsewhere: overlap --state-dir "$HOME/.overlap" ` + again
	}
	var exit *launcher.ExitError
	if errors.As(err, &exit) {
		code = exit.Code
	}
	return text, hint, code
}

// directoryIn finds the path in a complaint about one.
func directoryIn(text string) string {
	before, _, _ := strings.Cut(text, " can be written by others")
	return quoteForShell(before[strings.LastIndex(before, ": ")+1:])
}

func quoteForShell(s string) string {
	s = strings.TrimSpace(s)
	if strings.ContainsAny(s, " '\"$`\\&;|<>()*?[]#~!") {
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	return s
}

func oneLine(s string) string { return strings.ReplaceAll(strings.TrimSpace(s), "\n", "; ") }

// wrongUsage puts the parser's complaints into our words.
func wrongUsage(c *urfave.Context, err error, _ bool) error {
	command := ""
	if c.Command != nil && c.Command.Name != c.App.Name {
		command = c.Command.Name
	}
	text := err.Error()
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: -"); ok {
		name = strings.TrimLeft(name, "-")
		flags := c.App.Flags
		if command != "" {
			flags = append(append([]urfave.Flag{}, c.Command.Flags...), c.App.Flags...)
		}
		var names []string
		for _, f := range flags {
			names = append(names, f.Names()...)
		}
		names = append(names, "help")
		hint := "see the flags: " + helpOf(command)
		if near := nearest(name, names); near != "" {
			hint = "did you mean: " + strings.TrimSpace("overlap "+command) + " --" + near
		}
		return &usageError{"unknown flag --" + name, hint}
	}
	if before, after, ok := strings.Cut(text, "for flag "); ok {
		text = before + "for flag --" + strings.TrimLeft(after, "-")
	}
	if name, ok := strings.CutPrefix(text, "flag needs an argument: -"); ok {
		text = "flag needs a value: --" + strings.TrimLeft(name, "-")
	}
	return &usageError{text, "see the flags: " + helpOf(command)}
}

func helpOf(command string) string { return strings.TrimSpace("overlap help " + command) }

func unknownCommand(c *urfave.Context) error {
	name := c.Args().First()
	var names []string
	for _, command := range c.App.VisibleCommands() {
		names = append(names, command.Name)
	}
	hint := "see the commands: overlap help"
	if near := nearest(name, names); near != "" {
		hint = "did you mean: overlap " + near
	}
	return &usageError{fmt.Sprintf("unknown command %q", name), hint}
}

// nearest is the name that is most like the word, "" where none is.
func nearest(word string, names []string) string {
	best, found := 0.75, ""
	for _, name := range names {
		if d := smetrics.JaroWinkler(word, name, 0.7, 4); d > best {
			best, found = d, name
		}
	}
	return found
}

func unexpected(c *urfave.Context, word string) error {
	return &usageError{fmt.Sprintf("%s: unexpected argument %q", c.Command.Name, word), "see its usage: " + helpOf(c.Command.Name)}
}

// badValue is a value that could be parsed and makes no sense, and what would.
func badValue(c *urfave.Context, flag, value, want string) error {
	return refused(c, flag, value, "want "+want)
}

// refused is a value that could be parsed and makes no sense, and why not. It names the variable
// where it may have come from there.
func refused(c *urfave.Context, flag, value, why string) error {
	command := ""
	if c.Command != nil && c.Command.Name != c.App.Name {
		command = c.Command.Name
	}
	return &usageError{fmt.Sprintf("invalid value %q for flag --%s (or $%s): %s", value, flag, environment(command, flag), why),
		"see the flags: " + helpOf(command)}
}

// Words about a handover.

func wordsOfEvent(service string, e control.Event, elapsed time.Duration) string {
	what := e.Text
	switch e.Kind {
	case control.KindStarting:
		what = fmt.Sprintf("generation %d is starting", e.Generation)
	case control.KindHealthy:
		what = fmt.Sprintf("generation %d is healthy", e.Generation)
	case control.KindSwitched:
		what = fmt.Sprintf("generation %d serves", e.Generation)
	case control.KindDrained:
		what = fmt.Sprintf("generation %d has drained", e.Generation)
	case control.KindMessage:
		what = fmt.Sprintf("generation %d: %s", e.Generation, e.Text)
	}
	return fmt.Sprintf("overlap: %s: %s (%d ms)", service, what, elapsed.Milliseconds())
}

func wordsOfReload(o control.Outcome) string {
	return fmt.Sprintf("%s: generation %d serves instead of %d, switched after %.1f ms", o.Service, o.To, o.From, o.SwitchMS)
}

func wordsOfStop(service string) string { return service + ": stopped" }

// wordsOfEnd is what a served generation says on a terminal when it goes.
func wordsOfEnd(service string, number int, r lifecycle.Report) string {
	if r.Handover {
		return fmt.Sprintf("overlap: %s: generation %d has handed over to a newer one and ends", service, number)
	}
	return fmt.Sprintf("overlap: %s: generation %d has drained and ends", service, number)
}

// cause prefers the reason of a context's end to the bare fact.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && errors.Is(err, context.Canceled) {
		return c
	}
	return err
}

func wordsOfBench(s bench.Snapshot, generation int) string {
	serves := s.Generation
	if serves == "" && generation > 0 {
		serves = fmt.Sprint(generation)
	}
	if serves == "" {
		serves = "?"
	}
	return fmt.Sprintf("overlap: bench: %4.1f s  %d requests (%.0f/s)  %d failed  %d reloads  generation %s",
		s.Elapsed.Seconds(), s.Requests, s.Rate, s.Failed, s.Handovers, serves)
}
