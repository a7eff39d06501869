package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

const (
	// requestTimeout bounds how long a client may take to say what it wants.
	requestTimeout = 5 * time.Second
	// writeTimeout bounds one write to a client that does not read.
	writeTimeout = time.Second
	// sessionProtocol is the name in the Upgrade header.
	sessionProtocol = "overlap-session"
)

// Server answers on one control socket.
type Server struct {
	path    string
	file    os.FileInfo // the socket as it was made
	backend Backend
	look    func(ctx context.Context, connections bool) (Status, error)
	log     *slog.Logger
	http    *http.Server
	served  chan struct{} // closed when http.Serve has returned
	base    context.Context
	abandon context.CancelFunc // ends base

	mu       sync.Mutex
	closing  bool
	answers  int           // running answers and pieces of work
	answered chan struct{} // closed when closing and answers is 0
	sessions int
	ended    chan struct{} // closed when closing and sessions is 0
}

// Serve listens on the path, mode 0600, and answers until Close. A socket that a dead
// owner left is replaced. The path may be of any length on Linux, 103 bytes elsewhere.
// A nil log says nothing.
func Serve(path string, b Backend, log *slog.Logger) (*Server, error) {
	s := newServer(path, b.Status, log)
	s.backend = b
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", s.status)
	mux.HandleFunc("POST /v1/reload", s.reload)
	mux.HandleFunc("POST /v1/stop", s.stop)
	mux.HandleFunc("POST /v1/session", s.session)
	return s.serve(mux, 0o600, func(_, uid int) bool { return allowed(uid) }, slog.LevelWarn)
}

// Introduce listens on the path for processes that the owner has started, and answers [Client.Brief]
// and nothing else. With mode 0666 anybody can connect: admit says which processes are answered.
// Others are not even listened to, and leave no trace in the log but at its lowest level.
func Introduce(path string, mode fs.FileMode, admit func(pid int) bool, brief func() Status, log *slog.Logger) (*Server, error) {
	s := newServer(path, func(context.Context, bool) (Status, error) { return brief(), nil }, log)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", s.status)
	return s.serve(mux, mode, func(pid, _ int) bool { return admit(pid) }, slog.LevelDebug)
}

func newServer(path string, look func(context.Context, bool) (Status, error), log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		path:     path,
		look:     look,
		log:      log,
		served:   make(chan struct{}),
		answered: make(chan struct{}),
		ended:    make(chan struct{}),
	}
	s.base, s.abandon = context.WithCancel(context.Background())
	return s
}

// serve listens, and answers whom admit lets in; of others it tells at the level.
func (s *Server) serve(h http.Handler, mode fs.FileMode, admit func(pid, uid int) bool, level slog.Level) (*Server, error) {
	ln, err := listenUnix(s.path, mode)
	if err != nil {
		return nil, fmt.Errorf("serve the control socket %s: %w", s.path, err)
	}
	if s.file, err = os.Lstat(s.path); err != nil {
		ln.Close()
		return nil, fmt.Errorf("serve the control socket %s: %w", s.path, err)
	}
	s.http = &http.Server{
		Handler:           h,
		ReadHeaderTimeout: requestTimeout,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	s.http.SetKeepAlivesEnabled(false)
	go func() {
		defer close(s.served)
		if err := s.http.Serve(&peerListener{ln, admit, s.log, level}); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("control socket failed", "path", s.path, "error", err)
		}
	}()
	return s, nil
}

// peerListener lets in those that admit does.
type peerListener struct {
	*net.UnixListener
	admit func(pid, uid int) bool
	log   *slog.Logger
	level slog.Level
}

func (l *peerListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		pid, uid, err := peerOf(conn)
		if err == nil && l.admit(pid, uid) {
			return conn, nil
		}
		l.log.Log(context.Background(), l.level, "control connection refused", "pid", pid, "uid", uid, "error", err)
		conn.Close()
	}
}

// allowed is for the effective user's processes and root's.
func allowed(uid int) bool { return uid == 0 || uid == os.Geteuid() }

// enter counts an answer in, unless the server is closing.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.answers++
	return true
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers--
	s.settleLocked()
}

func (s *Server) settleLocked() {
	if !s.closing {
		return
	}
	if s.answers == 0 {
		closeOnce(s.answered)
	}
	if s.sessions == 0 {
		closeOnce(s.ended)
	}
}

func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}

// Close stops listening and removes the socket, waits for the running answers until
// the context ends, and then ends sessions and whatever is left. A client that says
// nothing, or does not read, is not waited for. The error wraps the context's where
// something was cut. It must not be called from a Backend's method. A second Close
// waits like the first.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	first := !s.closing
	s.closing = true
	s.settleLocked()
	s.mu.Unlock()
	if first {
		// The name goes first: who comes now finds nothing, instead of a refusal.
		if now, err := os.Lstat(s.path); err == nil && os.SameFile(s.file, now) {
			os.Remove(s.path)
		}
	}
	var cut error
	select {
	case <-s.answered:
	case <-ctx.Done():
		cut = ctx.Err()
	}
	s.abandon()
	s.http.Close()
	<-s.served
	// What was abandoned gets the chance to see it, but no more time than the context.
	for _, done := range []chan struct{}{s.answered, s.ended} {
		select {
		case <-done:
		case <-ctx.Done():
			cut = ctx.Err()
		}
	}
	if cut != nil {
		return fmt.Errorf("close the control socket %s: %w", s.path, cut)
	}
	return nil
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	if !s.enter() {
		refuse(w, http.StatusServiceUnavailable, errClosing)
		return
	}
	defer s.leave()
	status, err := s.look(r.Context(), r.URL.Query().Get(queryConnections) != "false")
	if err != nil {
		refuse(w, http.StatusInternalServerError, err)
		return
	}
	answer(w, http.StatusOK, status)
}

func (s *Server) reload(w http.ResponseWriter, r *http.Request) {
	var request ReloadRequest
	if err := decode(w, r, &request, request.check); err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	s.work(w, "reload", func(ctx context.Context, events func(Event)) {
		s.backend.Reload(ctx, request, events)
	})
}

func (s *Server) stop(w http.ResponseWriter, r *http.Request) {
	var request StopRequest
	if err := decode(w, r, &request, request.check); err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	s.work(w, "stop", func(ctx context.Context, events func(Event)) {
		s.backend.Stop(ctx, request, events)
	})
}

var errClosing = errors.New("the owner is about to exit")

// work runs a piece of work beside the answer that tells of it, so that a client that
// went away or does not read holds up only its own answer.
func (s *Server) work(w http.ResponseWriter, what string, do func(context.Context, func(Event))) {
	if !s.enter() {
		refuse(w, http.StatusServiceUnavailable, errClosing)
		return
	}
	defer s.leave()
	queue := newEvents()
	s.enterWork()
	go func() {
		defer s.leave()
		do(s.base, queue.put)
		queue.end(what)
	}()
	w.Header().Set("Content-Type", "application/x-ndjson")
	control := http.NewResponseController(w)
	control.SetReadDeadline(time.Time{})
	for {
		events, more := queue.take()
		for _, e := range events {
			if err := writeEvent(w, control, e); err != nil {
				s.log.Debug("client went away, the work goes on", "work", what, "error", err)
				return
			}
		}
		if !more {
			return
		}
	}
}

// enterWork counts the work in while its answer is counted already.
func (s *Server) enterWork() {
	s.mu.Lock()
	s.answers++
	s.mu.Unlock()
}

func writeEvent(w io.Writer, control *http.ResponseController, e Event) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if len(line) >= maxMessage {
		e.Text = e.Text[:min(len(e.Text), 1000)] + "…"
		if line, err = json.Marshal(e); err != nil {
			return err
		}
	}
	control.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := w.Write(append(line, '\n')); err != nil {
		return err
	}
	return control.Flush()
}

// decode reads the request's body; an empty one is the zero request. What this version does not
// know is refused: who sent it would think that it is heeded.
func decode(w http.ResponseWriter, r *http.Request, into any, check func() error) error {
	http.NewResponseController(w).SetReadDeadline(time.Now().Add(requestTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	if len(body) > 0 {
		d := json.NewDecoder(bytes.NewReader(body))
		d.DisallowUnknownFields()
		if err := d.Decode(into); err != nil {
			return fmt.Errorf("read the request: %w", err)
		}
		if _, err := d.Token(); err != io.EOF {
			return errors.New("read the request: there is more behind its end")
		}
	}
	if err := check(); err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	return nil
}

type failure struct {
	Error string `json:"error"`
}

func refuse(w http.ResponseWriter, code int, err error) { answer(w, code, failure{err.Error()}) }

// answer writes a short answer and hands it to the kernel before it returns.
func answer(w http.ResponseWriter, code int, body any) {
	data, err := json.Marshal(body)
	if err != nil {
		code, data = http.StatusInternalServerError, []byte(`{"error":"the answer cannot be written as JSON"}`)
	}
	control := http.NewResponseController(w)
	control.SetWriteDeadline(time.Now().Add(writeTimeout))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", fmt.Sprint(len(data)+1))
	w.WriteHeader(code)
	w.Write(append(data, '\n'))
	control.Flush()
}

func (s *Server) session(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != sessionProtocol {
		w.Header().Set("Upgrade", sessionProtocol)
		refuse(w, http.StatusUpgradeRequired, fmt.Errorf("a session needs the header Upgrade: %s", sessionProtocol))
		return
	}
	if !s.enterSession() {
		refuse(w, http.StatusServiceUnavailable, errClosing)
		return
	}
	defer s.leaveSession()
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		refuse(w, http.StatusInternalServerError, err)
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Time{})
	conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+sessionProtocol+"\r\n\r\n"); err != nil {
		s.log.Debug("session not begun", "error", err)
		return
	}
	conn.SetWriteDeadline(time.Time{})
	session := newSession(conn, bufio.NewReader(buffered.Reader))
	defer session.Close()
	// A session ends with the server, whether its Backend looks at the context or not.
	defer context.AfterFunc(s.base, func() { session.Close() })()
	s.backend.Session(s.base, session)
}

func (s *Server) enterSession() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.sessions++
	return true
}

func (s *Server) leaveSession() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions--
	s.settleLocked()
}
