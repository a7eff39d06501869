package cli

import (
	"io"
	"os"
	"slices"
	"testing"
	"time"

	urfave "github.com/urfave/cli/v2"
)

// given is what a command gets of its flags --listen and --health.
func given(t *testing.T, args ...string) (listen, health []string) {
	t.Helper()
	runWith(t, args, func(c *urfave.Context) error {
		listen, health = list(c, "listen"), lines(c, "health")
		return nil
	})
	return listen, health
}

// runWith has f look at the flags of `overlap run`.
func runWith(t *testing.T, args []string, f urfave.ActionFunc) {
	t.Helper()
	p := &program{stdout: io.Discard, stderr: io.Discard}
	app := p.app()
	app.Command("run").Action = f
	if err := app.Run(arrange(append([]string{"overlap", "run"}, args...), app)); err != nil {
		t.Fatal(err)
	}
}

// A time of 0 is none, which is another thing than a flag that was not given.
func TestNoTime(t *testing.T) {
	for value, want := range map[string]time.Duration{"": 0, "0": -1, "0s": -1, "3s": 3 * time.Second} {
		var args []string
		for _, flag := range []string{"--start-timeout", "--stop-delay", "--drain-timeout", "--hold"} {
			if value != "" {
				args = append(args, flag, value)
			}
		}
		runWith(t, args, func(c *urfave.Context) error {
			s, err := readSettings(c)
			for _, got := range []time.Duration{s.StartTimeout, s.StopDelay, s.DrainTimeout, s.Hold} {
				if got != want {
					t.Errorf("%q is %v, want %v", value, got, want)
				}
			}
			return err
		})
	}
}

// A probe may have commas in it, and a command line breaks too; an address has neither. Variables
// hold several of both.
func TestSeveralValues(t *testing.T) {
	const command = "exec:sh -c \"test a,b = a,b\"\n"
	same := func(what string, got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	for _, set := range []bool{false, true} { // what is in the variables gives way to flags
		if set {
			t.Setenv("OVERLAP_RUN_LISTEN", ":1, udp::2")
			t.Setenv("OVERLAP_RUN_HEALTH", "tcp\n\n  /nope?a=1,2 \nexec:a \"b,c\"\n")
		}
		listen, health := given(t, "--listen", ":80,:81", "--listen", ":82", "--health", "/x?a=1,2", "--health", command+"x")
		same("addresses", listen, ":80", ":81", ":82")
		same("probes", health, "/x?a=1,2", command+"x")
	}
	listen, health := given(t)
	same("addresses of the variable", listen, ":1", "udp::2")
	same("probes of the variable", health, "tcp", "/nope?a=1,2", "exec:a \"b,c\"")
	os.Unsetenv("OVERLAP_RUN_LISTEN")
	os.Unsetenv("OVERLAP_RUN_HEALTH")
	listen, health = given(t)
	same("no address", listen)
	same("no probe", health)
}
