package intercept

import (
	"io"
	"os"
)

// What the children of this package's own are called (argv[0]): the launcher's executable.
const (
	idleName   = "overlap-intercept-idle"   // [accessFor]'s
	probedName = "overlap-intercept-probed" // [Probe]'s
)

// Main must be the first thing that main, and a TestMain, calls in a program
// that uses Start or Probe. It returns at once, unless this process is a child that these
// have made to learn what the kernel lets them do.
func Main() {
	if len(os.Args) == 0 {
		return
	}
	switch os.Args[0] {
	case idleName:
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	case probedName:
		os.Exit(probed())
	}
}
