package intercept

import (
	"io"
	"os"
)

// idleName is what [accessFor]'s child is called (argv[0]): it is the launcher's executable.
const idleName = "overlap-intercept-idle"

// Main must be the first thing that main, and a TestMain, calls in a program
// that uses Start. It returns at once, unless this process is a child that Start has made to learn
// what the kernel lets it do.
func Main() {
	if len(os.Args) > 0 && os.Args[0] == idleName {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
}
