package launcher_test

import (
	"strings"
	"testing"
)

// TestAccepting: a program that listens before it accepts is given the clients when it accepts, though
// the kernel lets the check connect before.
func TestAccepting(t *testing.T) {
	t.Parallel()
	s := newService(t)
	addr := free(t, "tcp", "127.0.0.1")
	s.goProgram(programConfig{Kind: "plain", Listen: []string{addr}, Slow: true})
	s.start()
	s.serving(0)
	s.mustAsk(addr, 1)
	s.reload()
	s.mustAsk(addr, 2)
	s.said("msg=serving service=web generation=2")
	accepts := 0
	for line := range strings.Lines(s.output()) {
		switch {
		case strings.Contains(line, "program: accepts"):
			accepts++
		case strings.Contains(line, "msg=serving"):
			if accepts--; accepts < 0 {
				t.Fatalf("clients came before the program accepted:\n%s", s.output())
			}
		}
	}
}
