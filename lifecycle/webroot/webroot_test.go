package webroot

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func site(t *testing.T, o Options) http.Handler {
	t.Helper()
	if o.Generation == nil {
		o.Generation = func() int { return 7 }
	}
	h, err := Handler(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.(*handler).root.Close() })
	return h
}

// ask does one request; headers are key and value in turn.
func ask(t *testing.T, h http.Handler, method, target, body string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(method, "/", strings.NewReader(body))
	r.URL.Path = target
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if got := w.Header().Get(GenerationHeader); got != "7" {
		t.Errorf("%s %s: generation %q", method, target, got)
	}
	return w
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"a.txt": "0123456789", "sub/index.html": "<p>index", "list/<b>&.txt": "x", "list/.secret": "x",
		".env": "secret", ".git/config": "secret", "sub/.hidden/x": "secret", "..data/real.txt": "real",
	})
	outside := t.TempDir()
	write(t, outside, map[string]string{"passwd": "secret"})
	for link, target := range map[string]string{
		"out": outside, "out.txt": filepath.Join(outside, "passwd"), "up.txt": "../../../../../../etc/passwd",
		"in.txt": "a.txt", "real.txt": "..data/real.txt",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	h := site(t, Options{Dir: dir})
	for _, c := range []struct {
		path string
		code int
		body string
	}{
		{"/a.txt", 200, "0123456789"},
		{"/in.txt", 200, "0123456789"},
		{"/real.txt", 200, "real"},
		{"/sub/", 200, "<p>index"},
		{"/sub", 301, ""},
		{"/nothing", 404, ""},
		{"/a.txt/b", 404, ""},
		{"/.env", 404, ""},
		{"/.git/config", 404, ""},
		{"/.git/", 404, ""},
		{"/sub/.hidden/x", 404, ""},
		{"/..data/real.txt", 404, ""},
		{"/list/.secret", 404, ""},
		{"/out/passwd", 404, ""},
		{"/out.txt", 404, ""},
		{"/up.txt", 404, ""},
		{"/../../etc/passwd", 404, ""},
		{"/a\x00b", 404, ""},
		{"/" + strings.Repeat("x", 5000), 404, ""},
	} {
		w := ask(t, h, "GET", c.path, "")
		if w.Code != c.code || c.body != "" && w.Body.String() != c.body {
			t.Errorf("GET %.40q: %d %q, want %d %q", c.path, w.Code, w.Body, c.code, c.body)
		}
		if strings.Contains(w.Body.String(), "secret") {
			t.Errorf("GET %.40q: %q", c.path, w.Body)
		}
	}
}

func TestListing(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"<b>&.txt": "x", ".secret": "x", "javascript:x": "x", "d/x": "x"})
	h := site(t, Options{Dir: dir})
	body := ask(t, h, "GET", "/", "").Body.String()
	for _, want := range []string{"&lt;b&gt;&amp;.txt", `href="./javascript:x"`, `href="d/"`} {
		if !strings.Contains(body, want) {
			t.Errorf("listing lacks %s:\n%s", want, body)
		}
	}
	for _, no := range []string{"<b>", "secret"} {
		if strings.Contains(body, no) {
			t.Errorf("listing has %s:\n%s", no, body)
		}
	}
}

func TestCachingAndRanges(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"a.txt": "0123456789"})
	h := site(t, Options{Dir: dir})
	w := ask(t, h, "GET", "/a.txt", "")
	tag, modified := w.Header().Get("Etag"), w.Header().Get("Last-Modified")
	if tag == "" || modified == "" {
		t.Fatalf("Etag %q, Last-Modified %q", tag, modified)
	}
	for _, c := range []struct {
		code    int
		body    string
		headers []string
	}{
		{304, "", []string{"If-None-Match", tag}},
		{304, "", []string{"If-Modified-Since", modified}},
		{200, "0123456789", []string{"If-None-Match", `"other"`}},
		{412, "", []string{"If-Match", `"other"`}},
		{206, "234", []string{"Range", "bytes=2-4"}},
		{206, "234", []string{"Range", "bytes=2-4", "If-Range", tag}},
		{200, "0123456789", []string{"Range", "bytes=2-4", "If-Range", `"other"`}},
		{416, "", []string{"Range", "bytes=20-"}},
	} {
		if w := ask(t, h, "GET", "/a.txt", "", c.headers...); w.Code != c.code || c.body != "" && w.Body.String() != c.body {
			t.Errorf("%q: %d %q, want %d %q", c.headers, w.Code, w.Body, c.code, c.body)
		}
	}
	write(t, dir, map[string]string{"a.txt": "01234567890"})
	if w := ask(t, h, "GET", "/a.txt", "", "If-None-Match", tag); w.Code != 200 {
		t.Errorf("after a change: %d", w.Code)
	}
}

func TestMethods(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"a.txt": "0123456789"})
	h := site(t, Options{Dir: dir})
	if w := ask(t, h, "HEAD", "/a.txt", ""); w.Code != 200 || w.Body.Len() != 0 || w.Header().Get("Content-Length") != "10" {
		t.Errorf("HEAD: %d %q %v", w.Code, w.Body, w.Header())
	}
	for _, m := range []string{"POST", "PUT", "DELETE", "OPTIONS", "ODD"} {
		if w := ask(t, h, m, "/a.txt", "x"); w.Code != 405 || w.Header().Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: %d, Allow %q", m, w.Code, w.Header().Get("Allow"))
		}
	}
}

// A pipe would block who opens it for ever.
func TestSpecialFilesAreAbsent(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644); err != nil {
		t.Skip(err)
	}
	if w := ask(t, site(t, Options{Dir: dir}), "GET", "/pipe", ""); w.Code != 404 {
		t.Errorf("GET /pipe: %d", w.Code)
	}
}

func TestEcho(t *testing.T) {
	h := site(t, Options{Dir: t.TempDir(), Delay: 20 * time.Millisecond})
	for _, m := range []string{"GET", "POST", "PATCH", "ODD"} {
		begin := time.Now()
		w := ask(t, h, m, "/echo", "12345")
		var got echo
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if want := (echo{m, 5, os.Getpid(), 7}); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		if d := time.Since(begin); d < 20*time.Millisecond {
			t.Errorf("answered after %v", d)
		}
	}
}

func TestEchoOfABrokenBody(t *testing.T) {
	h := site(t, Options{Dir: t.TempDir()})
	r := httptest.NewRequest("POST", "/echo", io.MultiReader(strings.NewReader("x"), broken{}))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != 400 || w.Header().Get(GenerationHeader) != "7" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestHealthz(t *testing.T) {
	dir := t.TempDir()
	if w := ask(t, site(t, Options{Dir: dir}), "GET", "/healthz", ""); w.Code != 200 {
		t.Errorf("%d", w.Code)
	}
	h := site(t, Options{Dir: dir, Readiness: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(503)
	})})
	if w := ask(t, h, "GET", "/healthz", ""); w.Code != 503 {
		t.Errorf("%d", w.Code)
	}
}

func TestARootThatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"file": "x"})
	if _, err := Handler(Options{Dir: filepath.Join(dir, "gone")}); !errors.Is(err, fs.ErrNotExist) ||
		!strings.Contains(err.Error(), filepath.Join(dir, "gone")+" is not there") {
		t.Errorf("missing: %v", err)
	}
	if _, err := Handler(Options{Dir: filepath.Join(dir, "file")}); err == nil || !strings.Contains(err.Error(), "open web root") {
		t.Errorf("a file: %v", err)
	}
}

// The working directory was removed, or moved and made anew, as a deployment does.
func TestARootThatMoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "current")
	write(t, dir, map[string]string{"v": "old"})
	t.Chdir(dir)
	old := site(t, Options{})
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Getwd(); err == nil {
		// The system still knows where it is: the directory is served by its new name.
		if w := ask(t, site(t, Options{}), "GET", "/v", ""); w.Body.String() != "old" {
			t.Errorf("%d %q", w.Code, w.Body)
		}
	}
	write(t, dir, map[string]string{"v": "new"})
	if w := ask(t, site(t, Options{Dir: dir}), "GET", "/v", ""); w.Body.String() != "new" {
		t.Errorf("next generation: %d %q", w.Code, w.Body)
	}
	if w := ask(t, old, "GET", "/v", ""); w.Body.String() != "old" {
		t.Errorf("this generation: %d %q", w.Code, w.Body)
	}
	if err := os.RemoveAll(dir + ".old"); err != nil {
		t.Fatal(err)
	}
	if _, err := Handler(Options{}); err == nil || !strings.Contains(err.Error(), "web root") {
		t.Errorf("removed: %v", err)
	}
	if w := ask(t, old, "GET", "/v", ""); w.Code != 404 {
		t.Errorf("removed beneath: %d", w.Code)
	}
}
