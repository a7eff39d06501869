// Command overlap replaces a running network server with its next version, and no client
// notices. Everything it says and does is in package lifecycle/cli.
package main

import (
	"os"

	"overlap/lifecycle/cli"
	"overlap/lifecycle/launcher"
)

func main() {
	launcher.Main()
	os.Exit(cli.Main(os.Args, os.Stdout, os.Stderr))
}
