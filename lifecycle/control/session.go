package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// maxRequests bounds the requests of the other side that wait for their turn.
const maxRequests = 1024

// sessionWriteTimeout bounds one message to an owner that does not read. It is longer
// than a busy machine needs, for a session that breaks means that an owner is dead.
const sessionWriteTimeout = 10 * time.Second

// Message is one line of a session: a request where Op is set, else the answer to the
// request of that ID. Each side counts its own requests.
type Message struct {
	ID   uint64          `json:"id"`
	Op   string          `json:"op,omitempty"`
	Body json.RawMessage `json:"body,omitempty"`
	Err  string          `json:"err,omitempty"`
}

// RemoteError is what the other side's handler returned.
type RemoteError struct {
	Op   string // what it was asked for
	Text string
}

func (e *RemoteError) Error() string { return e.Text }

// Session is a connection between two owners. Either side may ask and answer. While it
// is whole, the other side's process lives: the kernel breaks it when that dies. It is
// safe for concurrent use, Handle and Start aside. Close it when done.
type Session struct {
	conn    net.Conn
	reader  *bufio.Reader
	handler func(ctx context.Context, op string, body json.RawMessage) (any, error)
	writing chan struct{}   // holds a token while one message is written
	ctx     context.Context // ends when the session is broken
	broken  context.CancelCauseFunc

	mu       sync.Mutex
	started  bool
	last     uint64
	calls    map[uint64]chan Message
	requests []Message     // of the other side, in order
	arrived  chan struct{} // holds a token when there is a request
}

func newSession(conn net.Conn, reader *bufio.Reader) *Session {
	s := &Session{
		conn:    conn,
		reader:  reader,
		writing: make(chan struct{}, 1),
		calls:   make(map[uint64]chan Message),
		arrived: make(chan struct{}, 1),
	}
	s.ctx, s.broken = context.WithCancelCause(context.Background())
	return s
}

// Handle sets what answers the other side's requests: one at a time, in the order they
// came. A nil result is an answer without a body. The context ends when the session
// breaks. It may use Call. Set it before Start; without one every request is refused.
func (s *Session) Handle(f func(ctx context.Context, op string, body json.RawMessage) (any, error)) {
	s.handler = f
}

// Start begins to read. Until then the other side waits, and its death is not noticed.
// A second Start does nothing.
func (s *Session) Start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started {
		return
	}
	s.started = true
	go s.read()
	go s.answerRequests()
}

// Done is closed when the session is broken: the other side closed it or died, or
// broke its rules, or Close was called.
func (s *Session) Done() <-chan struct{} { return s.ctx.Done() }

// Err returns why the session is broken, nil while it is not: io.EOF when the other
// side closed it or died, os.ErrClosed after Close.
func (s *Session) Err() error {
	if s.ctx.Err() == nil {
		return nil
	}
	return context.Cause(s.ctx)
}

// Close breaks the session. Messages that were sent before still arrive. It waits for
// nothing, so a handler may call it. A second Close does nothing.
func (s *Session) Close() error {
	s.fail(os.ErrClosed)
	return nil
}

func (s *Session) fail(why error) {
	s.broken(why)
	s.conn.Close()
}

// Call asks the other side and waits for its answer, which is put into out unless that
// is nil; a nil in is a request without a body. The error wraps *RemoteError where the
// other side's handler failed, ErrTooLarge, the context's error, or what broke the
// session. When the context ends first, the other side is not told. Calls may run at the
// same time. The session must be started.
func (s *Session) Call(ctx context.Context, op string, in, out any) error {
	if err := s.call(ctx, op, in, out); err != nil {
		return fmt.Errorf("ask the other owner for %q: %w", op, err)
	}
	return nil
}

func (s *Session) call(ctx context.Context, op string, in, out any) error {
	if op == "" {
		return errors.New("no operation")
	}
	body, err := marshalBody(in)
	if err != nil {
		return err
	}
	id, answered, err := s.expect()
	if err != nil {
		return err
	}
	defer s.forget(id)
	if err := s.send(ctx, Message{ID: id, Op: op, Body: body}); err != nil {
		return err
	}
	select {
	case m := <-answered:
		return readAnswer(op, m, out)
	case <-ctx.Done():
		return ctx.Err()
	case <-s.Done():
	}
	// The answer may have come just before the end.
	select {
	case m := <-answered:
		return readAnswer(op, m, out)
	default:
		return s.Err()
	}
}

func marshalBody(v any) (json.RawMessage, error) {
	if v == nil {
		return nil, nil
	}
	return json.Marshal(v)
}

func readAnswer(op string, m Message, out any) error {
	if m.Err != "" {
		return &RemoteError{Op: op, Text: m.Err}
	}
	if out == nil || len(m.Body) == 0 {
		return nil
	}
	if err := json.Unmarshal(m.Body, out); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return nil
}

func (s *Session) expect() (id uint64, answered chan Message, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started {
		return 0, nil, errors.New("the session is not started")
	}
	s.last++
	answered = make(chan Message, 1)
	s.calls[s.last] = answered
	return s.last, answered, nil
}

func (s *Session) forget(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.calls, id)
}

// send writes one message. A message that was written in part breaks the session, for
// nothing after it could be understood.
func (s *Session) send(ctx context.Context, m Message) error {
	line, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(line) >= maxMessage {
		return ErrTooLarge
	}
	select {
	case s.writing <- struct{}{}:
		defer func() { <-s.writing }()
	case <-ctx.Done():
		return ctx.Err()
	case <-s.Done():
		return s.Err()
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s.conn.SetWriteDeadline(time.Now().Add(sessionWriteTimeout))
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		s.conn.SetWriteDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	n, err := s.conn.Write(append(line, '\n'))
	if !stop() {
		<-interrupted
	}
	if err == nil {
		return nil
	}
	if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("the other owner does not read: %w", err)
	}
	s.fail(fmt.Errorf("write to the session: %w", err))
	return s.Err()
}

// read is the goroutine that sorts what comes in.
func (s *Session) read() {
	for {
		line, err := readLine(s.reader)
		if err != nil {
			s.fail(err)
			return
		}
		var m Message
		if err := json.Unmarshal(line, &m); err != nil {
			s.fail(fmt.Errorf("read from the session: %w", err))
			return
		}
		if m.Op == "" {
			s.deliver(m)
		} else if !s.queue(m) {
			s.fail(fmt.Errorf("the other owner has more than %d requests waiting", maxRequests))
			return
		}
	}
}

// readLine reads one line of at most 1 MiB, without its end. What a dead process wrote
// in part is no line, but the end of the session.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > maxMessage {
			return nil, ErrTooLarge
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return bytes.TrimSuffix(line, []byte{'\n'}), nil
		case errors.Is(err, bufio.ErrBufferFull):
		case ended(err):
			return nil, io.EOF
		default:
			return nil, err
		}
	}
}

// deliver hands an answer to its call. One that nobody waits for any more is dropped.
func (s *Session) deliver(m Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if answered, ok := s.calls[m.ID]; ok {
		delete(s.calls, m.ID)
		answered <- m
	}
}

func (s *Session) queue(m Message) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.requests) >= maxRequests {
		return false
	}
	s.requests = append(s.requests, m)
	select {
	case s.arrived <- struct{}{}:
	default:
	}
	return true
}

// answerRequests is the goroutine that runs the handler.
func (s *Session) answerRequests() {
	for {
		select {
		case <-s.Done():
			return
		case <-s.arrived:
		}
		s.mu.Lock()
		requests := s.requests
		s.requests = nil
		s.mu.Unlock()
		for _, m := range requests {
			if s.ctx.Err() != nil {
				return
			}
			s.answer(m)
		}
	}
}

func (s *Session) answer(request Message) {
	answer := Message{ID: request.ID}
	var result any
	err := fmt.Errorf("%q is not known", request.Op)
	if s.handler != nil {
		result, err = s.handler(s.ctx, request.Op, request.Body)
	}
	if err == nil {
		answer.Body, err = marshalBody(result)
	}
	if err == nil {
		if err = s.send(s.ctx, answer); !errors.Is(err, ErrTooLarge) {
			s.failUnlessSent(err)
			return
		}
	}
	answer.Body, answer.Err = nil, errorText(err)
	s.failUnlessSent(s.send(s.ctx, answer))
}

// failUnlessSent: the other side waits for each answer, so one that could not be sent
// ends the session rather than leave it waiting.
func (s *Session) failUnlessSent(err error) {
	if err != nil {
		s.fail(err)
	}
}

func errorText(err error) string {
	const most = 64 << 10
	text := err.Error()
	if text == "" {
		text = "failed"
	}
	return text[:min(len(text), most)]
}
