package cli

import (
	"slices"
	"strings"
	"testing"

	urfave "github.com/urfave/cli/v2"
)

func TestArrange(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"", ""},
		{"status", "status"},
		{"status web", "status -- web"},
		{"status web --json", "status --json -- web"},
		{"status --json web", "status --json -- web"},
		{"reload web --timeout 5s --json", "reload --timeout 5s --json -- web"},
		{"reload web --timeout=5s", "reload --timeout=5s -- web"},
		{"reload --timeout", "reload --timeout"},
		{"reload web -- node --json", "reload -- web -- node --json"},
		{"reload -- node", "reload -- -- node"},
		{"status -- web", "status -- -- web"},
		{"status --state-dir /x web", "--state-dir /x status -- web"},
		{"--log-level debug status web --json", "--log-level debug status --json -- web"},
		{"status web --nonsense x", "status --nonsense -- web x"},
		{"nonsense --json", "nonsense --json"},
		{"run --name x node --name y", "run --name x -- node --name y"},
		{"run --name x -- node --name y", "run --name x -- -- node --name y"},
	} {
		app := (&program{}).app()
		app.Commands = append(app.Commands, &urfave.Command{Name: "run", Flags: []urfave.Flag{&urfave.StringFlag{Name: "name"}}})
		got := arrange(append([]string{"overlap"}, strings.Fields(test.args)...), app)
		if want := append([]string{"overlap"}, strings.Fields(test.want)...); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", test.args, got, want)
		}
	}
}

func TestSplitCommand(t *testing.T) {
	before, command := splitCommand([]string{"web", "--", "node", "--", "x"})
	if !slices.Equal(before, []string{"web"}) || !slices.Equal(command, []string{"node", "--", "x"}) {
		t.Error(before, command)
	}
	if _, command := splitCommand([]string{"web"}); command != nil {
		t.Error(command)
	}
	if _, command := splitCommand([]string{"--"}); command == nil {
		t.Error("a command that is missing is none at all")
	}
}

// Every flag has a variable of its own, named in the help.
func TestEnvironmentNames(t *testing.T) {
	seen := map[string]string{}
	app := (&program{}).app()
	check := func(command string, flags []urfave.Flag) {
		for _, f := range flags {
			if f == urfave.HelpFlag || f == urfave.VersionFlag {
				continue
			}
			vars := f.(urfave.DocGenerationFlag).GetEnvVars()
			if len(vars) != 1 || !strings.HasPrefix(vars[0], "OVERLAP_") {
				t.Errorf("%s --%s: %q", command, f.Names()[0], vars)
				continue
			}
			if other, ok := seen[vars[0]]; ok {
				t.Errorf("%s is for %s and for %s", vars[0], other, command)
			}
			seen[vars[0]] = command
		}
	}
	check("overlap", app.Flags)
	for _, c := range app.Commands {
		check(c.Name, c.Flags)
	}
	for _, v := range []string{"OVERLAP_STATE_DIR", "OVERLAP_LISTEN", "OVERLAP_TLS_CERT", "OVERLAP_RELOAD_TIMEOUT", "OVERLAP_STOP_TIMEOUT"} {
		if _, ok := seen[v]; !ok {
			t.Errorf("no flag has %s", v)
		}
	}
}

func TestAddressFor(t *testing.T) {
	listeners := []string{"unix:/x.sock", "udp:127.0.0.1:53", "[::1]:80", "127.0.0.1:80"}
	if got, err := addressFor("", listeners); got != "[::1]:80" || err != nil {
		t.Error(got, err)
	}
	if got, err := addressFor("udp", listeners); got != "127.0.0.1:53" || err != nil {
		t.Error(got, err)
	}
	if _, err := addressFor("", listeners[:2]); err == nil {
		t.Error("no TCP address, no error")
	}
}

func TestParseListen(t *testing.T) {
	for in, want := range map[string][2]string{
		":8080":          {"tcp", ":8080"},
		"tcp:[::1]:80":   {"tcp", "[::1]:80"},
		"unix:/run/x":    {"unix", "/run/x"},
		"udp:[::1]:53":   {"udp", "[::1]:53"},
		"localhost:http": {"tcp", "localhost:http"},
	} {
		network, at, err := parseListen(in)
		if got := [2]string{network, at}; got != want || err != nil {
			t.Errorf("%s: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "8080", "unix:", "host:", "::1", "udp:", "udp:53", "tcp:udp:[::1]:53"} {
		if _, _, err := parseListen(in); err == nil {
			t.Errorf("%q: no error", in)
		}
	}
}
