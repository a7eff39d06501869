package lifecycle_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"overlap/reuse/sockdiag"
)

// halfOpens are the ways to hold connections half-open. The returned function lets them complete.
var halfOpens = map[string]struct {
	config func(*config)
	hold   func(*testing.T, *service) (release func())
}{
	// The kernel drops the client's ACK until the client has sent something (tcp(7)).
	"defer accept": {func(c *config) { c.DeferAccept = 30 }, func(*testing.T, *service) func() { return func() {} }},
	"lost ACK":     {func(*config) {}, dropACKs},
}

// halfOpenClient is the address of the clients whose ACKs get lost; those of the probes don't.
const halfOpenClient = "127.0.0.2"

// dropACKs has the network drop what completes the clients' handshakes.
func dropACKs(t *testing.T, s *service) func() {
	if !ownNetwork {
		missing(t, "a packet filter needs a network namespace of the test's own: run it as root")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		missing(t, "nft is missing: apt-get install nftables")
	}
	_, port, _ := net.SplitHostPort(s.address(0))
	table := "overlap" + port
	nft := func(rules string) error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		return nil
	}
	err := nft(fmt.Sprintf("table ip %s {\n chain out {\n type filter hook output priority 0; policy accept;\n"+
		"  ip saddr %s tcp dport %s tcp flags & (fin|syn|rst|psh|ack) == ack drop\n }\n}\n", table, halfOpenClient, port))
	if err != nil {
		missing(t, "the kernel has no packet filter here: "+err.Error())
	}
	held := true
	release := func() {
		if held {
			held = false
			if err := nft("delete table ip " + table + "\n"); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(release)
	return release
}

const halfOpenClients = 20

// openHalf connects clients whose connections are half-open for the server.
func openHalf(t *testing.T, s *service) (conns []net.Conn) {
	t.Helper()
	d := net.Dialer{Timeout: 20 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(halfOpenClient + ":0"))}
	for range halfOpenClients {
		c, err := d.Dial("tcp", s.address(0))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		conns = append(conns, c)
	}
	diag, err := sockdiag.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer diag.Close()
	port := netip.MustParseAddrPort(s.address(0)).Port()
	eventually(t, func() error {
		half, err := diag.HalfOpen(port)
		if err == nil && len(half) < halfOpenClients {
			err = fmt.Errorf("%d connections are half-open, want %d", len(half), halfOpenClients)
		}
		return err
	})
	return conns
}

// answers completes the connections with a request each, and counts who answered.
func answers(conns []net.Conn) (by map[string]int, failed []error) {
	by = map[string]int{}
	for _, c := range conns {
		c.SetDeadline(time.Now().Add(30 * time.Second))
		fmt.Fprint(c, "GET /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	}
	for _, c := range conns {
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			by[resp.Header.Get("Overlap-Generation")]++
		}
		if err != nil {
			failed = append(failed, err)
		}
	}
	return by, failed
}

// TestHalfOpen: connections that are half-open at the switch are completed after it, and answered.
func TestHalfOpen(t *testing.T) {
	for name, way := range halfOpens {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := config{Listen: []string{"tcp 127.0.0.1:0"}, Probe: "/healthz", Grace: 100 * time.Millisecond}
			way.config(&c)
			s, old, _ := startWith(t, c)
			release := way.hold(t, s)
			conns := openHalf(t, s)
			s.mustReload()
			s.mustAsk(2)
			release()
			by, failed := answers(conns)
			t.Logf("answered by %v", by)
			if len(failed) > 0 {
				t.Errorf("%d of %d half-open connections failed: %v", len(failed), len(conns), failed[0])
			}
			if code := old.code(t); code != 0 {
				t.Errorf("exit code %d of the old generation", code)
			}
		})
	}
}

// TestHalfOpenIsSeen is the negative control: without the proof they are reset.
func TestHalfOpenIsSeen(t *testing.T) {
	for name, way := range halfOpens {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := config{Listen: []string{"tcp 127.0.0.1:0"}, Probe: "/healthz", Grace: 100 * time.Millisecond, ProofOff: true}
			way.config(&c)
			s, old, _ := startWith(t, c)
			release := way.hold(t, s)
			conns := openHalf(t, s)
			s.mustReload()
			old.code(t)
			release()
			by, failed := answers(conns)
			t.Logf("answered by %v, %d failed", by, len(failed))
			if len(failed) == 0 {
				t.Error("without the proof no half-open connection was lost: TestHalfOpen proves nothing")
			}
		})
	}
}
