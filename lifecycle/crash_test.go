package lifecycle_test

import (
	"fmt"
	"net"
	"testing"
	"time"

	"overlap/lifecycle/bench"
)

const crashClients = 32

// crashes are the steps of a handover at which a process is killed with SIGKILL.
var crashes = []struct {
	step string
	old  bool // the old process is killed, else the new one
	// switched is true where the new one gets the connections already.
	switched bool
	// byHand is true where it may matter that the new one is not the old one's child.
	byHand bool
}{
	{"locked", false, false, false},
	{"greeted", false, false, false},
	{"listening", false, false, false},
	{"yielded", false, false, false},
	{"settled", false, false, false},
	{"healthy", false, false, true},
	{"switched", false, true, true},
	{"recorded", false, true, true},
	{"told", false, true, true},

	{"old hello", true, false, true},
	{"old reserve", true, false, false},
	{"old yield", true, false, false},
	{"old event", true, false, false},
	{"old switched", true, true, true},
	{"proved", true, true, true},
	{"left", true, true, true},
}

// TestCrash: whichever process dies at whatever step, a healthy generation that exists serves
// on, only what the dead one had in hand is lost, and the next reload works.
func TestCrash(t *testing.T) {
	needLinux(t)
	for _, how := range []string{"reload", "by hand"} {
		for _, c := range crashes {
			if how == "by hand" && !c.byHand {
				continue
			}
			who := "new"
			if c.old {
				who = "old"
			}
			t.Run(fmt.Sprintf("%s/%s/%s", how, who, c.step), func(t *testing.T) {
				t.Parallel()
				conf := config{Listen: []string{"tcp 127.0.0.1:0"}, Probe: "/healthz", Grace: 2 * time.Second}
				if c.old {
					conf.KillAt = c.step
				}
				linger := c.step == "told"
				if linger {
					conf.DeferAccept = 60
				}
				s, first, old := startWith(t, conf)
				endLinger := func() {}
				if linger {
					// A half-open connection keeps the old one listening: once it has let go, the
					// new one's death leaves nobody.
					conn, err := net.Dial("tcp", s.address(0))
					if err != nil {
						t.Fatal(err)
					}
					endLinger = func() { conn.Close() }
					defer endLinger()
				}
				s.next(func(n *config) { n.KillAt = "" })
				if !c.old {
					s.next(func(n *config) { n.KillAt = c.step })
				}
				r := s.loadAs(bench.Both, crashClients, 2*time.Millisecond, func() {
					if how == "reload" {
						s.reloadAnyway()
					} else {
						p := s.start()
						if !c.old {
							p.code(t)
						}
					}
					s.next(func(n *config) { n.KillAt = "" })
					survivor := old.Generation
					if c.old {
						first.code(t)
						survivor = s.serving(old.Generation).Generation
					}
					if n := s.eventuallyAsk(); n != survivor {
						t.Errorf("generation %d serves, want %d", n, survivor)
					}
					endLinger()
					s.mustReload()
				})
				t.Logf("%d requests, %d failed %v, %d delayed, max %s", r.Requests, r.Failed, r.ByCause, r.Delayed, r.Latency.Max)
				refused := r.ByCause[bench.Refused]
				if refused > 0 && !(c.old && !c.switched) {
					t.Errorf("%d requests were refused though a healthy generation was there", refused)
				}
				// A dying process closes its connections before its listener, which has a lower
				// descriptor: a client can lose a request, connect again, and lose that too.
				if lost := r.Failed - refused; lost > 2*crashClients {
					t.Errorf("%d requests were lost, more than can have been in flight on the dead process", lost)
				}
				if !c.old && !c.switched && r.Failed > 0 {
					t.Errorf("%d requests failed though the dead process never had one", r.Failed)
				}
				s.onlyOne(s.serving(old.Generation))
			})
		}
	}
}

// reloadAnyway asks for a reload whose outcome may be anything, and no outcome at all.
func (s *service) reloadAnyway() {
	s.t.Helper()
	out, err := s.tryReload()
	s.t.Logf("reload: %+v, %v", out, err)
}

// eventuallyAsk asks until a generation answers.
func (s *service) eventuallyAsk() (n int) {
	s.t.Helper()
	eventually(s.t, func() (err error) { n, err = s.ask(); return err })
	return n
}
