package cli

import (
	"slices"
	"strings"

	urfave "github.com/urfave/cli/v2"
)

// programCommands are the commands whose arguments are a program's command line: their flags
// end at the first argument.
var programCommands = []string{"run"}

// arrange lets flags stand before or after arguments, and global flags behind the command: the
// parser stops at the first argument, so flags are moved to the front. What follows on "--" is
// left as it is.
func arrange(args []string, app *urfave.App) []string {
	if len(args) == 0 {
		return []string{"overlap"}
	}
	global, rest := takeFlags(args[1:], app.Flags)
	out := append([]string{args[0]}, global...)
	if len(rest) == 0 {
		return out
	}
	command := app.Command(rest[0])
	if command == nil {
		return append(out, rest...)
	}
	stop := slices.Contains(programCommands, command.Name)
	var own, positional []string
	for rest = rest[1:]; len(rest) > 0; {
		word := rest[0]
		switch {
		case word == "--" || stop && !isFlag(word):
			positional = append(positional, rest...)
			rest = nil
		case !isFlag(word):
			positional = append(positional, word)
			rest = rest[1:]
		default:
			n := width(rest, command.Flags)
			to := &own
			if known(word, app.Flags) && !known(word, command.Flags) {
				n, to = width(rest, app.Flags), &out
			}
			*to = append(*to, rest[:n]...)
			rest = rest[n:]
		}
	}
	out = append(append(out, command.Name), own...)
	if len(positional) > 0 {
		// One more "--", which the parser takes away.
		out = append(append(out, "--"), positional...)
	}
	return out
}

// takeFlags splits the flags at the front from the rest.
func takeFlags(args []string, flags []urfave.Flag) (taken, rest []string) {
	for len(args) > 0 && isFlag(args[0]) {
		n := width(args, flags)
		taken, args = append(taken, args[:n]...), args[n:]
	}
	return taken, args
}

func isFlag(word string) bool { return len(word) > 1 && word[0] == '-' && word != "--" }

// width is how many words the flag at the front takes, with its value.
func width(args []string, flags []urfave.Flag) int {
	name, _, inline := strings.Cut(strings.TrimLeft(args[0], "-"), "=")
	f := find(name, flags)
	if f == nil || inline || len(args) == 1 {
		return 1
	}
	if d, ok := f.(urfave.DocGenerationFlag); ok && d.TakesValue() {
		return 2
	}
	return 1
}

func known(word string, flags []urfave.Flag) bool {
	name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
	return find(name, flags) != nil
}

func find(name string, flags []urfave.Flag) urfave.Flag {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}
