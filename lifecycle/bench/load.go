package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The defaults of a Load.
const (
	DefaultClients = 64
	DefaultTimeout = 10 * time.Second
)

// DelayedAfter is how long a request takes at least to be counted as delayed. A
// SYN that got no answer is sent again after 1 s (TCP_TIMEOUT_INIT of Linux,
// RFC 6298), so a request that takes nearly that long met a closed door once.
const DelayedAfter = 900 * time.Millisecond

// failurePause follows each failed request of a client. Without it a refusing
// server would be asked tens of thousands of times a second, and the number of
// failures would say how fast the generator is.
const failurePause = time.Millisecond

// Mode says how clients use connections. The zero value is Both.
type Mode uint8

// The modes.
const (
	// Both: every second client as Close, the others as KeepAlive.
	Both Mode = iota
	// Close: a connection for each request, which says Connection: close.
	Close
	// KeepAlive: one connection a client for as long as the server lets it live.
	KeepAlive

	datagrams // Network "udp"
	modes     = int(datagrams) + 1
)

var modeNames = [modes]string{"both", "close", "keepalive", "udp"}

func (m Mode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

// MarshalText returns the name, so that modes are words in JSON.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText is the inverse of MarshalText; with it a flag can be a Mode.
func (m *Mode) UnmarshalText(text []byte) error {
	for i, name := range modeNames {
		if name == string(text) {
			*m = Mode(i)
			return nil
		}
	}
	return fmt.Errorf("unknown mode %q: close, keepalive or both", text)
}

// Load describes the requests to make. Only Address must be given.
type Load struct {
	// Address is the target, host and port. An empty or unspecified host is this
	// machine. A name is looked up once, when Run begins.
	Address string
	// Network is "tcp" (the default), for HTTP/1.1, or "udp", for datagrams that
	// the server echoes: a sequence number of 8 bytes and Body. It may name its
	// generation in a line behind the echo, "\nOverlap-Generation: 7".
	Network string
	// Clients is how many clients there are; 0 is DefaultClients. A client has one
	// request under way at a time (datagrams with a Rate: as many as it takes).
	Clients int
	// Duration is how long new requests begin; 0 is until the context ends or
	// Requests were made.
	Duration time.Duration
	// Requests is how many requests to make; 0 is as many as there is time for.
	Requests int64
	// Rate is requests a second of all clients together, an open loop: requests
	// begin at fixed moments, and latency counts from the moment at which a
	// request should have begun. So a stall is not hidden by clients that wait.
	// 0 is a closed loop: each client begins when its last request has ended.
	Rate float64
	// Think is how long a client waits between requests in a closed loop.
	Think time.Duration
	// Timeout bounds one request, connecting included; 0 is DefaultTimeout. A
	// keep-alive request may be given up to 1/16 longer.
	Timeout time.Duration

	// Mode says how connections are used.
	Mode Mode
	// Method is GET by default, POST with a Body.
	Method string
	// Path is the request's target, "/" by default.
	Path string
	// Host is the Host header, Address by default.
	Host string
	// Body is sent with each request.
	Body []byte
	// TLS, if not nil, makes it HTTPS. ServerName is taken from Host where empty.
	TLS *tls.Config

	// Check, if not nil, sees each answer whose status is good; its error makes
	// the request fail with cause Body. It is called by many goroutines at once,
	// and the answer is valid only during the call. Not for datagrams.
	Check func(*Answer) error
	// Progress, if not nil, is called about five times a second, and once at the
	// end, by one goroutine. It should return soon. Where Elapsed has reached Duration
	// no new request begins any more.
	Progress func(Snapshot)
}

// Snapshot is how far a run has come.
type Snapshot struct {
	Elapsed    time.Duration
	Requests   int64   // ended, failed ones included
	Failed     int64   // of Requests
	Delayed    int64   // of Requests, see DelayedAfter
	Rate       float64 // requests a second since the last snapshot
	Generation string  // that a recent answer named, "" if none did
	Handovers  int     // switches marked so far
}

// MaxRate is the highest Load.Rate: a request a nanosecond.
const MaxRate = 1e9

// ValidPath reports whether a request line can hold a path.
func ValidPath(path string) bool {
	return (strings.HasPrefix(path, "/") || path == "*") && printable(path)
}

// ValidMethod reports whether a request line can hold a method: letters, digits and the signs of a
// token (RFC 9110, 5.6.2).
func ValidMethod(method string) bool {
	return method != "" && printable(method) && !strings.ContainsAny(method, `"(),/:;<=>?@[\]{}`)
}

// printable reports whether a word has neither blanks nor control characters in it.
func printable(word string) bool {
	return !strings.ContainsFunc(word, func(r rune) bool { return r <= ' ' || r == 0x7f })
}

// withDefaults fills in what is not given and refuses what cannot be meant.
func (l Load) withDefaults() (Load, error) {
	if l.Network == "" {
		l.Network = "tcp"
	}
	if l.Network != "tcp" && l.Network != "udp" {
		return l, fmt.Errorf("network %q: only tcp and udp", l.Network)
	}
	if l.Clients == 0 {
		l.Clients = DefaultClients
	}
	if l.Timeout == 0 {
		l.Timeout = DefaultTimeout
	}
	if l.Method == "" {
		l.Method = "GET"
		if len(l.Body) > 0 {
			l.Method = "POST"
		}
	}
	if l.Path == "" {
		l.Path = "/"
	}
	if l.Host == "" {
		l.Host = l.Address
	}
	switch {
	case l.Clients < 0 || l.Duration < 0 || l.Requests < 0 || l.Rate < 0 || l.Think < 0 || l.Timeout < 0:
		return l, errors.New("a number of the load is negative")
	case !(l.Rate <= MaxRate): // nor is it no number
		return l, errors.New("rate: more than one request a nanosecond")
	case l.Mode > KeepAlive:
		return l, fmt.Errorf("unknown mode %d", l.Mode)
	case !ValidPath(l.Path):
		return l, fmt.Errorf("path %q: must begin with / and have no blanks", l.Path)
	case !ValidMethod(l.Method):
		return l, fmt.Errorf("method %q: must be one word", l.Method)
	case !printable(l.Host):
		return l, fmt.Errorf("host %q: must have no blanks", l.Host)
	case l.Network == "udp" && (l.TLS != nil || l.Check != nil):
		return l, errors.New("TLS and Check are for tcp only")
	case l.Network == "udp" && len(l.Body)+sequenceSize > maxDatagram:
		return l, fmt.Errorf("body of %d bytes: a datagram holds %d", len(l.Body), maxDatagram-sequenceSize)
	}
	return l, nil
}

// resolve looks the address up once. Where a name has several addresses it takes
// the first that can be connected to, as a client would, else the first.
func resolve(ctx context.Context, network, address string) (netip.AddrPort, error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, network, service)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if host == "" {
		host = "127.0.0.1"
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		switch ip {
		case netip.IPv4Unspecified():
			ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		case netip.IPv6Unspecified():
			if ip = netip.IPv6Loopback(); !hasLoopback6() {
				ip = netip.AddrFrom4([4]byte{127, 0, 0, 1}) // as in most containers
			}
		}
		return netip.AddrPortFrom(ip.Unmap(), uint16(port)), nil
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for _, ip := range ips {
		if len(ips) == 1 || network == "udp" {
			break
		}
		d := net.Dialer{Timeout: time.Second}
		conn, err := d.DialContext(ctx, network, net.JoinHostPort(ip.Unmap().String(), strconv.Itoa(port)))
		if err == nil {
			conn.Close()
			return netip.AddrPortFrom(ip.Unmap(), uint16(port)), nil
		}
	}
	return netip.AddrPortFrom(ips[0].Unmap(), uint16(port)), nil
}

// hasLoopback6 reports whether ::1 is an address of this machine.
func hasLoopback6() bool {
	l, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// run is one run of a load: what its clients share.
type run struct {
	Load
	target netip.AddrPort
	base   time.Time // all times of a run are nanoseconds since base

	stopped  atomic.Bool
	stopping chan struct{} // closed when no new request shall begin
	stopOnce sync.Once
	stopAt   int64 // when; valid once stopping is closed
	ownErr   error // why, where it is the generator's own fault; likewise

	issued atomic.Int64 // tickets of requests given out

	mu          sync.Mutex
	generations []string // by number of their sample.generation
	byName      map[string]uint16
}

// Run makes the requests and returns the account of them. New requests begin until
// Duration is over, Requests were begun, or ctx ends, whichever is first; those under
// way are waited for, at most Timeout. The end of ctx is no error: it is how a
// caller ends a run.
//
// marks may be nil. The error tells a load that makes no sense, a name that is not
// found, or wraps ErrGenerator; with the last the result is of what was done so far.
func (l Load) Run(ctx context.Context, marks *Marks) (*Result, error) {
	l, err := l.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	target, err := resolve(ctx, l.Network, l.Address)
	if err != nil {
		return nil, fmt.Errorf("bench: resolve %s: %w", l.Address, err)
	}
	r := &run{
		Load:        l,
		target:      target,
		base:        time.Now(),
		stopping:    make(chan struct{}),
		generations: []string{""},
		byName:      map[string]uint16{"": 0},
	}
	clients := make([]*client, l.Clients)
	var wg sync.WaitGroup
	for i := range clients {
		c := newClient(r, i)
		clients[i] = c
		wg.Go(c.serve)
	}
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()

	t := newTally(r, clients, marks)
	t.follow(ctx, ended)
	if r.ownErr != nil {
		return t.result(), fmt.Errorf("bench %s: %w", l.Address, r.ownErr)
	}
	return t.result(), nil
}

// stop lets no new request begin. The first call's reason counts.
func (r *run) stop(ownErr error) {
	r.stopOnce.Do(func() {
		r.stopAt, r.ownErr = r.now(), ownErr
		r.stopped.Store(true)
		close(r.stopping)
	})
}

func (r *run) now() int64 { return int64(time.Since(r.base)) }

// next waits for the moment of the next request and returns when it should begin;
// false when there is none.
func (r *run) next(timer *time.Timer) (intended int64, ok bool) {
	if r.stopped.Load() {
		return 0, false
	}
	if r.Requests == 0 && r.Rate == 0 {
		return r.now(), true
	}
	ticket := r.issued.Add(1) - 1
	if r.Requests > 0 && ticket >= r.Requests {
		r.issued.Add(-1) // others may still wait for the moment of theirs
		return 0, false
	}
	if r.Rate == 0 {
		return r.now(), true
	}
	intended = int64(float64(ticket) * 1e9 / r.Rate)
	if !r.pause(timer, time.Duration(intended-r.now())) {
		r.issued.Add(-1)
		return 0, false
	}
	return intended, true
}

// pause waits, and says false when the run stops meanwhile.
func (r *run) pause(timer *time.Timer, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer.Reset(d)
	select {
	case <-timer.C:
		return true
	case <-r.stopping:
		timer.Stop()
		return false
	}
}

// maxGenerations bounds what is kept for a server whose Overlap-Generation header
// is another one in each answer.
const maxGenerations = 1 << 14

// generation gives a generation's name its number.
func (r *run) generation(name string) uint16 {
	r.mu.Lock()
	defer r.mu.Unlock()
	id, ok := r.byName[name]
	if !ok && len(r.generations) < maxGenerations {
		id = uint16(len(r.generations))
		r.generations = append(r.generations, name)
		r.byName[name] = id
	}
	return id
}

func (r *run) generationName(id uint16) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.generations[id]
}
