package intercept

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
)

// What decides about a socket's group is known at its bind, in Make mode too: without V6Only the launcher
// would look after the group of another address, and without Device after none of the socket's.
func TestGroupIsKnownAtBind(t *testing.T) {
	made := madeV6Only()
	for _, mode := range []Mode{Fetch, Make} {
		binds := make(chan Bind, 1)
		p := start(t, Options{
			Mode: mode,
			Bind: func(b Bind) error { binds <- b; return nil },
			Made: func(*os.File, int) error { return nil },
		}, nil)
		for _, c := range []struct {
			option, ip, answer string
			v6only             bool
			device             int
		}{
			{"as-made", "::1", "ok", made, 0},
			{"v6only", "::1", "ok", true, 0},
			{"dual", "::1", "ok", false, 0},
			{"as-made", "127.0.0.1", "ok", false, 0},
			{"device", "127.0.0.1", "ok", false, 1},
			{"index", "::1", "ok", made, 1},
			{"none", "127.0.0.1", "ok", false, 0},
			{"wrong", "::1", "EFAULT", true, 0}, // what the kernel refuses changes nothing
		} {
			address := vacant(t, "tcp", c.ip)
			p.expect(t, c.answer+" ok", "option", c.option, "tcp", address)
			var last Bind
			select {
			case last = <-binds:
			default: // the program has its answer, so it was not called
			}
			if last.Addr.String() != address || last.V6Only != c.v6only || last.Device != c.device {
				t.Errorf("%v %s: callback got %+v, want V6Only=%t Device=%d", mode, c.option, last, c.v6only, c.device)
			}
		}
		p.end()
	}
}

// vacant is an address that was free just now.
func vacant(t *testing.T, network, ip string) string {
	t.Helper()
	address, release, err := reserve(network, ip)
	if err != nil {
		missing(t, "no IPv6 on the loopback interface: sysctl net.ipv6.conf.lo.disable_ipv6=0")
	}
	release()
	return address
}

// A program can't take the steering from a launcher that has it; where it has not, the program's own works.
func TestSteered(t *testing.T) {
	shared, own := vacant(t, "udp", "127.0.0.1"), vacant(t, "udp", "127.0.0.1")
	for _, mode := range []Mode{Fetch, Make} {
		var log bytes.Buffer
		p := start(t, Options{
			Mode: mode,
			Bind: func(b Bind) error {
				if b.Addr == netip.MustParseAddrPort(shared) {
					b.Steered()
				}
				return nil
			},
			Made:   func(*os.File, int) error { return nil },
			Logger: slog.New(slog.NewTextHandler(&log, nil)),
		}, nil)
		p.expect(t, "ok EINVAL", "option", "none", "udp", own) // the control: the kernel's own answer
		p.expect(t, "ok ok", "option", "none", "udp", shared)
		p.expect(t, "ok ok", "option", "none", "tcp", own)
		p.expect(t, "ok ok", "option", "none", "tcp", "127.0.0.1:0")
		p.end()
		if n := strings.Count(log.String(), "own steering"); n != 1 {
			t.Errorf("%v: said %d times: %s", mode, n, log.String())
		}
	}
}

func TestRecent(t *testing.T) {
	var r recent[int]
	for i := range 10 {
		r.put(uint64(i%5), i, 3)
	}
	if len(r.of) != 3 || len(r.order) != 3 || r.of[4] != 9 || r.of[3] != 8 || r.of[2] != 7 {
		t.Errorf("remembered %v in the order %v", r.of, r.order)
	}
	r.put(3, 0, 3)
	if len(r.order) != 3 || r.of[3] != 0 {
		t.Errorf("remembered %v in the order %v", r.of, r.order)
	}
}

// BenchmarkOption is what the filter adds to a setsockopt(2) that nobody looks at.
func BenchmarkOption(b *testing.B) {
	for _, mode := range []Mode{Fetch, Make, Off} {
		b.Run(mode.String(), func(b *testing.B) {
			p, err := startProgram(Options{Mode: mode, Bind: func(Bind) error { return nil }, Made: func(*os.File, int) error { return nil }}, nil)
			if err != nil {
				b.Fatal(err)
			}
			defer p.end()
			b.ResetTimer()
			if answer := p.do("bench-option", strconv.Itoa(b.N)); answer != "ok" {
				b.Error(answer)
			}
		})
	}
}
