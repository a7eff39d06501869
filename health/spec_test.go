package health

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, test := range []struct{ spec, kind, text string }{
		{"/healthz", KindHTTP, "/healthz"},
		{" /healthz\n", KindHTTP, "/healthz"},
		{"/", KindHTTP, "/"},
		{"/a?b=c", KindHTTP, "/a?b=c"},
		{"//a/b", KindHTTP, "//a/b"},
		{"http://localhost:8080/up", KindHTTP, "http://localhost:8080/up"},
		{"http://localhost", KindHTTP, "http://localhost"},
		{"http://:8080/up", KindHTTP, "http://localhost:8080/up"},
		{"http://u:secret@localhost:8080/up", KindHTTP, "http://u:xxxxx@localhost:8080/up"},
		{"https://[::1]:8443/up", KindHTTPS, "https://[::1]:8443/up"},
		{"tcp", KindTCP, "tcp"},
		{"tcp://127.0.0.1:80", KindTCP, "tcp://127.0.0.1:80"},
		{"tcp://[::1]:80", KindTCP, "tcp://[::1]:80"},
		{"grpc://localhost:50051", KindGRPC, "grpc://localhost:50051"},
		{"grpc://localhost:50051/my.Service", KindGRPC, "grpc://localhost:50051/my.Service"},
		{`exec:check "two words"`, KindExec, `exec:check "two words"`},
		{"notify", KindNotify, "notify"},
		{"none", KindNone, "none"},
	} {
		s, err := Parse(test.spec, Options{})
		if err != nil {
			t.Errorf("Parse(%q): %v", test.spec, err)
			continue
		}
		if s.Kind() != test.kind || s.String() != test.text {
			t.Errorf("Parse(%q) = %s %q, want %s %q", test.spec, s.Kind(), s, test.kind, test.text)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, test := range []struct{ spec, want string }{
		{"", "it is empty"},
		{"healthz", `did you mean "/healthz"?`},
		{"localhost:8080/up", `did you mean "http://localhost:8080/up"?`},
		{"localhost:8080", `did you mean "tcp://localhost:8080"?`},
		{"HTTP://localhost/", `did you mean "http://localhost/"?`},
		{"grpc", `did you mean "grpc://host:port"?`},
		{"exec", `did you mean "exec:COMMAND"?`},
		{"ftp://localhost/", "want /path, http://host:port/path"},
		{"ftp://u:secret@localhost/", `"ftp://u:xxxxx@localhost/"`},
		{"http:///up", "the host is missing"},
		{"http://localhost:/up", "the port is missing"},
		{"http://localhost:0/up", "not between 1 and 65535"},
		{"http://localhost:65536/up", "not between 1 and 65535"},
		{"http://local host/", "invalid character"},
		{"tcp://localhost", "the port is missing"},
		{"tcp://localhost:80/x", "more than host and port"},
		{"grpc://localhost", "the port is missing"},
		{"grpc://localhost:1?x", "more than host, port and service"},
		{"exec:", "the command is empty"},
		{"exec:''", "the command is empty"},
		{"exec:check 'open", "split the command into words"},
	} {
		_, err := Parse(test.spec, Options{})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("Parse(%q): %v, want %q in it", test.spec, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("Parse(%q) shows the password: %v", test.spec, err)
		}
	}
}

func TestParseCAFile(t *testing.T) {
	if _, err := Parse("https://localhost/", Options{CAFile: filepath.Join(t.TempDir(), "none")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing CA file: %v", err)
	}
	empty := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(empty, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Parse("https://localhost/", Options{CAFile: empty}); err == nil || !strings.Contains(err.Error(), "holds no PEM certificate") {
		t.Errorf("CA file without a certificate: %v", err)
	}
	if _, err := Parse("https://localhost/", Options{CAFile: empty, Insecure: true}); err == nil || !strings.Contains(err.Error(), "exclude each other") {
		t.Errorf("CA file and Insecure: %v", err)
	}
}

// What is looked up when a launcher starts is found missing then; what a program may still make is
// left to the probe.
func TestMissing(t *testing.T) {
	there := filepath.Join(t.TempDir(), "there")
	if err := os.WriteFile(there, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for spec, missing := range map[string]bool{
		"exec:sh -c true":            false,
		"exec:" + there:              false,
		"exec:no-such-command a b":   true,
		"exec:" + there + "-but-not": true,
		"exec:./no-such-command":     false,
		"exec:no/such/command":       false,
		"tcp":                        false,
		"/no-such-path":              false,
	} {
		s, err := Parse(spec, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Missing(); (err != nil) != missing {
			t.Errorf("%s: %v", spec, err)
		}
	}
	if err := (Spec{}).Missing(); err != nil {
		t.Error(err)
	}
}

func TestZeroSpec(t *testing.T) {
	if err := (Spec{}).Check(t.Context(), Target{}); err == nil {
		t.Error("the zero Spec is healthy")
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"/healthz", "http://u:p@localhost:8080/a?b#c", "https://[::1]/", "tcp", "tcp://:80", "grpc://h:1/s",
		`exec:a 'b c' "d"`, "notify", "none", "localhost:80/x", "HTTP://x", "http://%41:80",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		s, err := Parse(spec, Options{})
		if err != nil {
			return
		}
		again, err := Parse(s.String(), Options{})
		if err != nil {
			t.Fatalf("Parse(%q) gave %q, which does not parse: %v", spec, s, err)
		}
		if again.Kind() != s.Kind() || again.String() != s.String() {
			t.Fatalf("%q is %s %q, and that is %s %q", spec, s.Kind(), s, again.Kind(), again)
		}
	})
}
