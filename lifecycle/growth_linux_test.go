package lifecycle_test

import (
	"bufio"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"overlap/lifecycle/state"
	"overlap/reuse"
)

var reloads = flag.Int("reloads", 30, "how many reloads the growth test makes")

// footprint is what a generation takes.
type footprint struct {
	listeners, descriptors, files int
	memory                        int // kB
}

// footprint waits until a generation is alone, and measures it.
func (s *service) footprint(r state.Record) (f footprint) {
	s.t.Helper()
	s.onlyOne(r)
	s.mustAsk(r.Generation)
	there, err := reuse.Listening("tcp", netip.MustParseAddrPort(s.address(0)).Port())
	if err != nil {
		s.t.Fatal(err)
	}
	f.listeners = len(there)
	for _, l := range there {
		if l.PID != r.Owner.PID {
			s.t.Errorf("%s listens too", l)
		}
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.Owner.PID))
	if err != nil {
		s.t.Fatal(err)
	}
	f.descriptors, f.files = len(fds), len(s.files())
	if f.memory, err = anonymous(r.Owner.PID); err != nil {
		s.t.Fatal(err)
	}
	return f
}

// anonymous is a process's resident memory that no file backs, in kB.
func anonymous(pid int) (int, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "RssAnon:"); ok {
			return strconv.Atoi(strings.Fields(rest)[0])
		}
	}
	return 0, fmt.Errorf("pid %d: no RssAnon", pid)
}

// TestGrowth: reload after reload, nothing grows.
func TestGrowth(t *testing.T) {
	t.Parallel()
	s, _, last := startWith(t, config{Listen: []string{"tcp 127.0.0.1:0"}, Probe: "/healthz", Grace: 10 * time.Millisecond})
	step := func() {
		s.mustReload()
		last = s.serving(last.Generation)
	}
	// A generation that starts while an older one still drains has a placeholder more; the
	// first ones have no predecessor, or one that had none.
	quiet := func() {
		for range 2 {
			s.onlyOne(last)
			step()
		}
	}
	quiet()
	began := s.footprint(last)
	for range *reloads - 2 {
		step()
	}
	quiet()
	ended := s.footprint(last)
	t.Logf("generation 3: %+v, generation %d: %+v", began, last.Generation, ended)
	if len(last.Listeners) != 1 || len(last.Listeners[0].Inodes) != 1 {
		t.Errorf("listeners %+v, want one with one socket", last.Listeners)
	}
	if ended.listeners > 3 { // the generation's own, and what keeps its place
		t.Errorf("%d listening sockets, it was %d", ended.listeners, began.listeners)
	}
	if ended.descriptors > began.descriptors+2 {
		t.Errorf("%d descriptors, it was %d", ended.descriptors, began.descriptors)
	}
	if ended.files != began.files {
		t.Errorf("%d files, it was %d", ended.files, began.files)
	}
	if limit := began.memory*3/2 + 4<<10; ended.memory > limit {
		t.Errorf("%d kB of memory, it was %d", ended.memory, began.memory)
	}
}
