// Package test drives the whole command from outside, as scripts: one promise a script, with
// the reason on top. The invariant: what a script waits for is an event (a status, a line of a
// log, the end of a process), never a time; a deadline only ends a test that has failed already.
package test

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"overlap/lifecycle/cli"
	"overlap/lifecycle/launcher"
	"overlap/test/fixture"
	"overlap/test/netns"
)

// The test binary is every command that the scripts call, by the name it is called by.
// testscript would set os.Args[0] to the bare name; a generation that replaces itself needs the
// path it was started by.
func TestMain(m *testing.M) {
	launcher.Main()
	switch filepath.Base(os.Args[0]) {
	case "overlap":
		os.Exit(cli.Main(os.Args, os.Stdout, os.Stderr))
	case "stranger":
		os.Exit(stranger(os.Args[1:]))
	case "fixture":
		os.Exit(fixture.Main(os.Args[1:]))
	}
	netns.Enter()
	testscript.Main(checked{m}, map[string]func(){"overlap": func() {}, "stranger": func() {}, "fixture": func() {}})
}

// checked fails tests that leave goroutines behind.
type checked struct{ m *testing.M }

func (c checked) Run() int {
	code := c.m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			println("goroutines are left:", err.Error())
			code = 1
		}
	}
	return code
}

func TestScripts(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("handovers need Linux")
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "scripts",
		Setup:               setup,
		Cmds:                commands,
		Condition:           condition,
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
	})
}
