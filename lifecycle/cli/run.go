package cli

import "slices"

// splitCommand splits the arguments of a command at the first "--": what is before it, and a
// program's command line behind it. The last is nil where there is no "--".
func splitCommand(args []string) (before, command []string) {
	i := slices.Index(args, "--")
	if i < 0 {
		return args, nil
	}
	return args[:i], args[i+1:]
}
