package lifecycle_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"testing"
	"time"
)

const clientHandovers = 5

// realClients are programs that overlap has no part in, what they say of failures, and of
// requests that were answered.
var realClients = []struct {
	name, program, install string
	args                   []string
	failures, answered     *regexp.Regexp
}{
	{"ab", "ab", "apache2-utils", []string{"-q", "-c", "16", "-t", "600", "-n", "100000000"}, abFailures, abAnswered},
	{"ab -k", "ab", "apache2-utils", []string{"-q", "-k", "-c", "16", "-t", "600", "-n", "100000000"}, abFailures, abAnswered},
	{"wrk", "wrk", "wrk", []string{"-c", "16", "-t", "2", "-d", "600s"}, wrkFailures, wrkAnswered},
	{"wrk, closing", "wrk", "wrk", []string{"-c", "16", "-t", "2", "-d", "600s", "-H", "Connection: close"}, wrkFailures, wrkAnswered},
}

var (
	abFailures  = regexp.MustCompile(`(?:Failed requests|Write errors|Non-2xx responses):\s+[1-9].*|apr_.*`)
	abAnswered  = regexp.MustCompile(`Complete requests:\s+(\d+)`)
	wrkFailures = regexp.MustCompile(`Socket errors:.*|Non-2xx.*`)
	wrkAnswered = regexp.MustCompile(`(\d+) requests in`)
)

// TestRealClients: ab and wrk see no failure in handovers.
func TestRealClients(t *testing.T) {
	needLinux(t)
	for _, c := range realClients {
		t.Run(c.name, func(t *testing.T) {
			program, err := exec.LookPath(c.program)
			if err != nil {
				missing(t, c.program+" is missing: apt-get install "+c.install)
			}
			s, _, last := startWith(t, config{Listen: []string{"tcp 127.0.0.1:0"}, Probe: "/healthz", Grace: time.Second})
			var out bytes.Buffer
			cmd := exec.Command(program, append(c.args, "http://"+s.address(0)+"/same")...)
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			defer func() {
				cmd.Process.Kill()
				<-ended
			}()
			eventually(t, func() error {
				status, err := s.status(last.Generation)
				if err == nil && status.Connections == 0 {
					err = fmt.Errorf("%s does not connect", c.program)
				}
				return err
			})
			for range clientHandovers {
				s.mustReload()
				last = s.serving(last.Generation)
			}
			cmd.Process.Signal(os.Interrupt) // both say then what they have counted
			select {
			case err = <-ended:
				ended <- err
			case <-time.After(60 * time.Second):
				t.Fatalf("%s did not end", c.program)
			}
			if bad := c.failures.FindString(out.String()); bad != "" {
				t.Errorf("%s says: %s", c.program, bad)
			}
			n := 0
			if m := c.answered.FindSubmatch(out.Bytes()); m != nil {
				n, _ = strconv.Atoi(string(m[1]))
			}
			if n < 10*clientHandovers {
				t.Errorf("%d requests were answered", n)
			}
			t.Logf("%d requests, %v", n, err)
			if t.Failed() {
				t.Logf("%s", out.Bytes())
			}
		})
	}
}
