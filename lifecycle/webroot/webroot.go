// Package webroot is what `overlap serve` serves: the files of one directory, a health
// check, and an echo that makes a handover visible.
//
// The invariant: no answer shows what lies outside the directory or behind a name that
// begins with a dot, and each answer says which generation gave it.
//
// Files are opened through [os.Root], so a symbolic link is followed only while it stays
// inside. A link may lead to a file in a directory that has a dot; the name that is
// asked for, or listed, may not.
package webroot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// GenerationHeader is the header that each answer carries.
const GenerationHeader = "Overlap-Generation"

// Options of a [Handler]. The zero value serves the current directory.
type Options struct {
	// Dir is the directory to serve; empty is the current one. A relative name is
	// resolved once, at the start, from the working directory as $PWD names it.
	Dir string
	// Delay is how long /echo waits before it answers, after it has read the body.
	Delay time.Duration
	// Generation numbers the answers; nil numbers them 0. It is called for each
	// request, from several goroutines.
	Generation func() int
	// Readiness answers /healthz; nil answers 200.
	Readiness http.Handler
}

// Handler serves:
//
//   - /healthz: o.Readiness.
//   - /echo: any method. Reads the whole body and answers, after o.Delay, with the JSON
//     {"method", "bytes", "pid", "generation"}.
//   - everything else, GET and HEAD only: the files of o.Dir as [http.FileServer] does,
//     with ranges, index.html, listings, Last-Modified, and an ETag of time and size.
//
// The directory is opened here, once, and kept: the error says when it is not there, is
// not a directory, or was removed beneath the process.
func Handler(o Options) (http.Handler, error) {
	root, err := openRoot(o.Dir)
	if err != nil {
		return nil, err
	}
	if o.Generation == nil {
		o.Generation = func() int { return 0 }
	}
	if o.Readiness == nil {
		o.Readiness = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "ok\n")
		})
	}
	return &handler{o: o, root: root}, nil
}

// openRoot opens the directory by its absolute name, so that the error has it, and so
// that a generation that starts where its directory was replaced gets the new one.
func openRoot(dir string) (*os.Root, error) {
	if dir == "" {
		dir = "."
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open web root %q: the working directory is gone: %w", dir, err)
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("open web root: %s is not there (any more): %w", abs, fs.ErrNotExist)
		}
		return nil, fmt.Errorf("open web root: %w", err)
	}
	return root, nil
}

type handler struct {
	o    Options
	root *os.Root
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	generation := h.o.Generation()
	w.Header().Set(GenerationHeader, strconv.Itoa(generation))
	switch r.URL.Path {
	case "/healthz":
		h.o.Readiness.ServeHTTP(w, r)
	case "/echo":
		h.echo(w, r, generation)
	default:
		h.file(w, r)
	}
}

type echo struct {
	Method     string `json:"method"`
	Bytes      int64  `json:"bytes"`
	PID        int    `json:"pid"`
	Generation int    `json:"generation"`
}

func (h *handler) echo(w http.ResponseWriter, r *http.Request, generation int) {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		http.Error(w, "the request's body ended early", http.StatusBadRequest)
		return
	}
	if h.o.Delay > 0 {
		timer := time.NewTimer(h.o.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
			return // nobody is there to read the answer
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	json.NewEncoder(w).Encode(echo{r.Method, n, os.Getpid(), generation})
}

func (h *handler) file(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	http.FileServer(&files{h.root, w.Header()}).ServeHTTP(w, r)
}

// files is the directory as one request sees it: it names the version of the file that
// it opens in the answer's header, where net/http looks for it.
type files struct {
	root   *os.Root
	header http.Header
}

// Open implements [http.FileSystem].
func (f *files) Open(name string) (http.File, error) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" {
		name = "."
	} else if hidden(name) {
		return nil, fs.ErrNotExist
	}
	// What is neither file nor directory is not opened at all: that could block, or do
	// something. O_NONBLOCK is for a pipe that takes the name's place in between.
	info, err := f.root.Stat(name)
	if err != nil {
		return nil, absent(err)
	}
	if !info.Mode().IsRegular() && !info.IsDir() {
		return nil, fs.ErrNotExist
	}
	file, err := f.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, absent(err)
	}
	if info, err = file.Stat(); err != nil {
		file.Close()
		return nil, err
	}
	switch {
	case info.IsDir():
		return directory{file}, nil
	case info.Mode().IsRegular():
		f.header.Set("Etag", etag(info))
		return file, nil // as it is, for sendfile
	}
	file.Close()
	return nil, fs.ErrNotExist
}

// hidden tells whether an element of the name begins with a dot.
func hidden(name string) bool {
	return strings.HasPrefix(name, ".") || strings.Contains(name, "/.")
}

// absent makes "no such file" of what a client can cause with a name: a link that leads
// outside, a file taken for a directory, an impossible name. What is the server's own
// trouble stays an error.
func absent(err error) error {
	for _, own := range []error{fs.ErrPermission, syscall.EMFILE, syscall.ENFILE, syscall.EIO, syscall.ENOMEM} {
		if errors.Is(err, own) {
			return err
		}
	}
	return fs.ErrNotExist
}

func etag(info fs.FileInfo) string {
	return fmt.Sprintf(`"%x-%x"`, info.ModTime().UnixNano(), info.Size())
}

// directory lists itself without hidden names.
type directory struct{ *os.File }

func (d directory) ReadDir(n int) ([]fs.DirEntry, error) {
	entries, err := d.File.ReadDir(n)
	shown := entries[:0]
	for _, e := range entries {
		if !hidden(e.Name()) {
			shown = append(shown, e)
		}
	}
	return shown, err
}

func (d directory) Readdir(n int) ([]fs.FileInfo, error) {
	entries, err := d.File.Readdir(n)
	shown := entries[:0]
	for _, e := range entries {
		if !hidden(e.Name()) {
			shown = append(shown, e)
		}
	}
	return shown, err
}
