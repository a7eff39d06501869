package health

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// patience is for what must happen; no test takes it when all is well.
const patience = 30 * time.Second

func mustParse(t testing.TB, spec string, o Options) Spec {
	t.Helper()
	s, err := Parse(spec, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// check probes, with a deadline that only a broken test meets.
func check(t *testing.T, s Spec, target Target) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return s.Check(ctx, target)
}

// wantError fails unless err has each of the words.
func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", words)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error %q, want %q in it", err, word)
		}
	}
}

func serve(t *testing.T, h http.HandlerFunc) *httptest.Server {
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv
}

func address(srv *httptest.Server) Address {
	return Address{"tcp", srv.Listener.Addr().String()}
}

// refused returns an address that nobody listens on.
func refused(t *testing.T) string {
	t.Helper()
	// Bound and not listening: connections are refused, and nobody else can
	// take the port meanwhile.
	syscall.ForkLock.RLock()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
}

func TestHTTP(t *testing.T) {
	var followed atomic.Bool
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "fine")
	})
	mux.HandleFunc("/empty", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) })
	mux.HandleFunc("/elsewhere", func(w http.ResponseWriter, r *http.Request) { followed.Store(true) })
	mux.HandleFunc("/warming", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "warming up\n"+strings.Repeat("x", 1000), http.StatusServiceUnavailable)
	})
	mux.HandleFunc("/broken", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, "half")
	})
	mux.HandleFunc("/cut", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		for chunk := make([]byte, 32<<10); r.Context().Err() == nil; {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/secret", func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "u" || password != "p" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	mux.HandleFunc("/host", func(w http.ResponseWriter, r *http.Request) { http.Error(w, r.Host, http.StatusTeapot) })
	srv := serve(t, mux.ServeHTTP)
	target := Target{Addresses: []Address{{"udp", "127.0.0.1:9"}, address(srv), {"tcp", refused(t)}}}

	for _, spec := range []string{"/ok", "/empty", "/endless", srv.URL + "/ok", "http://u:p@" + address(srv).Addr + "/secret"} {
		if err := check(t, mustParse(t, spec, Options{}), target); err != nil {
			t.Errorf("%v", err)
		}
	}
	for _, test := range []struct {
		spec  string
		words []string
	}{
		{"/missing", []string{"health check /missing: answered 404 Not Found"}},
		{"/moved", []string{`answered 302 Found to "/elsewhere", which is not followed`}},
		{"/warming", []string{`answered 503 Service Unavailable: "warming up\nxxx`, `x"…`}},
		{"/broken", []string{"answered 200 OK, but the body broke off: unexpected EOF"}},
		{"/cut", []string{"request to " + address(srv).Addr, "EOF"}},
		{"/secret", []string{"answered 401 Unauthorized"}},
		{"/host", []string{`418 I'm a teapot: "` + address(srv).Addr + `"`}},
		{"http://" + refused(t) + "/ok", []string{"connect to 127.0.0.1:", "connection refused"}},
	} {
		wantError(t, check(t, mustParse(t, test.spec, Options{}), target), test.words...)
	}
	if followed.Load() {
		t.Error("a redirect was followed")
	}
	wantError(t, check(t, mustParse(t, "/ok", Options{}), Target{}), "the service has no TCP address")
}

func TestHTTPUsesConnectionOnce(t *testing.T) {
	var opened atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !r.Close {
			http.Error(w, "the client means to keep the connection", http.StatusBadRequest)
		}
	}))
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	for range 3 {
		if err := check(t, mustParse(t, "/", Options{}), Target{Addresses: []Address{address(srv)}}); err != nil {
			t.Fatal(err)
		}
	}
	if n := opened.Load(); n != 3 {
		t.Errorf("3 probes made %d connections", n)
	}
}

// Every connection goes through the dialer, whatever address it is for.
func TestDial(t *testing.T) {
	srv := serve(t, func(http.ResponseWriter, *http.Request) {})
	grpc := serveGRPC(t, func(w http.ResponseWriter, _ *http.Request) { answerGRPC(w, grpcServing) })
	var asked []string
	dialer := func(to Address) DialFunc {
		return func(ctx context.Context, network, address string) (net.Conn, error) {
			asked = append(asked, network+" "+address)
			return new(net.Dialer).DialContext(ctx, to.Network, to.Addr)
		}
	}
	service := []Address{{"tcp", "192.0.2.1:80"}, {"unix", "/nowhere"}}
	for _, test := range []struct {
		spec string
		to   Address
		want string
	}{
		{"/", address(srv), "tcp 192.0.2.1:80"},
		{"http://localhost", address(srv), "tcp localhost:80"},
		{"http://[::]:81/x", address(srv), "tcp [::]:81"},
		{"http://admin.invalid:9000/", address(srv), "tcp admin.invalid:9000"},
		{"tcp", address(srv), "tcp 192.0.2.1:80, unix /nowhere"},
		{"tcp://:82", address(srv), "tcp localhost:82"},
		{"grpc://localhost:83", grpc, "tcp localhost:83"},
	} {
		asked = nil
		target := Target{Addresses: service, Dial: dialer(test.to)}
		if err := check(t, mustParse(t, test.spec, Options{}), target); err != nil {
			t.Errorf("%v", err)
		}
		if got := strings.Join(asked, ", "); got != test.want {
			t.Errorf("%s dialled %s, want %s", test.spec, got, test.want)
		}
	}
}

// A link-local address keeps its zone on the way to the dialer, and loses it in
// the Host header.
func TestHTTPZone(t *testing.T) {
	srv := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "[fe80::1]:80" {
			http.Error(w, r.Host, http.StatusBadRequest)
		}
	})
	for _, spec := range []string{"/", "http://[fe80::1%25lo]:80/"} {
		target := Target{Addresses: []Address{{"tcp", "[fe80::1%lo]:80"}}}
		target.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr != "[fe80::1%lo]:80" {
				t.Errorf("%s dialled %s", spec, addr)
			}
			return new(net.Dialer).DialContext(ctx, "tcp", address(srv).Addr)
		}
		if err := check(t, mustParse(t, spec, Options{}), target); err != nil {
			t.Error(err)
		}
	}
}

func TestHTTPOverUnix(t *testing.T) {
	dir, err := os.MkdirTemp("", "health")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.Listener.Close()
	srv.Listener = ln
	srv.Start()
	t.Cleanup(srv.Close)
	target := Target{Addresses: []Address{{"unix", filepath.Join(dir, "s")}}}
	for _, spec := range []string{"/", "tcp"} {
		if err := check(t, mustParse(t, spec, Options{}), target); err != nil {
			t.Error(err)
		}
	}
}

func TestHTTPS(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if (r.ProtoMajor == 2) != http2 {
				http.Error(w, r.Proto, http.StatusBadRequest)
			}
		}))
		srv.Config.ErrorLog = quiet()
		srv.EnableHTTP2 = http2
		srv.StartTLS()
		t.Cleanup(srv.Close)
		ca := filepath.Join(t.TempDir(), "ca.pem")
		block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
		if err := os.WriteFile(ca, block, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := check(t, mustParse(t, srv.URL, Options{CAFile: ca}), Target{}); err != nil {
			t.Errorf("with its CA, HTTP/2 %v: %v", http2, err)
		}
		if err := check(t, mustParse(t, srv.URL, Options{Insecure: true}), Target{}); err != nil {
			t.Errorf("insecure, HTTP/2 %v: %v", http2, err)
		}
		wantError(t, check(t, mustParse(t, srv.URL, Options{}), Target{}), "certificate")
	}
}

func TestHTTPTimeout(t *testing.T) {
	release := make(chan struct{})
	srv := serve(t, func(w http.ResponseWriter, r *http.Request) { <-release })
	defer close(release)
	target := Target{Addresses: []Address{address(srv)}}
	for _, spec := range []string{"/", "grpc://" + address(srv).Addr} {
		ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, errors.New("the time is over"))
		err := mustParse(t, spec, Options{}).Check(ctx, target)
		cancel()
		if spec == "/" {
			wantError(t, err, "the time is over")
		} else if err == nil { // an HTTP/1 server may also refuse at once
			t.Error("healthy without an answer")
		}
	}
}

// The words about a server that does not answer are the caller's, and say no more than what was
// tried: Go's own would follow.
func TestTimeoutWords(t *testing.T) {
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	addr := mute.Addr().String()
	for spec, want := range map[string]string{
		"http://" + addr + "/": "no answer within 20ms",
		"grpc://" + addr:       "no answer within 20ms: request to " + addr,
		"exec:sleep 60":        "no answer within 20ms: the command was killed",
	} {
		ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, errors.New("no answer within 20ms"))
		err := mustParse(t, spec, Options{}).Check(ctx, Target{Env: os.Environ()})
		cancel()
		if got := fmt.Sprint(err); got != "health check "+spec+": "+want {
			t.Errorf("%s: %s, want %s", spec, got, want)
		}
	}
}

func TestTCP(t *testing.T) {
	srv := serve(t, func(http.ResponseWriter, *http.Request) {})
	closed := refused(t)
	udp := Address{"udp", closed}
	if err := check(t, mustParse(t, "tcp", Options{}), Target{Addresses: []Address{address(srv), udp}}); err != nil {
		t.Error(err)
	}
	if err := check(t, mustParse(t, "tcp", Options{}), Target{Addresses: []Address{udp}}); err != nil {
		t.Errorf("UDP alone: %v", err)
	}
	err := check(t, mustParse(t, "tcp", Options{}), Target{Addresses: []Address{address(srv), {"tcp", closed}}})
	wantError(t, err, "health check tcp: connect to "+closed)
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v does not wrap ECONNREFUSED", err)
	}
	wantError(t, check(t, mustParse(t, "tcp", Options{}), Target{}), "no address yet")
	if err := check(t, mustParse(t, "tcp://"+address(srv).Addr, Options{}), Target{Addresses: []Address{{"tcp", closed}}}); err != nil {
		t.Error(err)
	}
	wantError(t, check(t, mustParse(t, "tcp://"+closed, Options{}), Target{}), "connection refused")
}

func TestNotifyAndNone(t *testing.T) {
	ready := make(chan struct{})
	notify := mustParse(t, "notify", Options{})
	wantError(t, check(t, notify, Target{}), "nobody listens")
	wantError(t, check(t, notify, Target{Ready: ready}), "has not come yet")
	close(ready)
	if err := check(t, notify, Target{Ready: ready}); err != nil {
		t.Error(err)
	}
	if err := check(t, mustParse(t, "none", Options{}), Target{}); err != nil {
		t.Error(err)
	}
}

// Whatever a probe sees, it closes what it opened.
func TestProbesLeaveNoDescriptor(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("counts descriptors in /proc")
	}
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	hang := make(chan struct{})
	srv := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			<-hang
		}
	})
	defer close(hang)
	grpc := serveGRPC(t, func(w http.ResponseWriter, _ *http.Request) { answerGRPC(w, grpcServing) })
	target := Target{Addresses: []Address{address(srv)}}
	run := func() {
		for _, spec := range []string{"/", "tcp", "grpc://" + grpc.Addr, "grpc://" + address(srv).Addr, "exec:true", "exec:false", "exec:/nowhere"} {
			check(t, mustParse(t, spec, Options{}), target)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		mustParse(t, "exec:sleep 1000", Options{}).Check(ctx, target)
	}
	run()
	before := count()
	for range 10 {
		run()
	}
	// The servers close their ends when they see that ours are closed.
	for deadline := time.Now().Add(patience); count() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors before, %d after", before, count())
		}
	}
}
