package bench

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// GenerationHeader is the header by which a server names its generation.
const GenerationHeader = "Overlap-Generation"

// MaxCheckedBody is how many bytes of an answer's body Load.Check sees at most.
// What is longer is read to the end all the same.
const MaxCheckedBody = 1 << 20

// closePatience is how long a client waits for the server to close first.
const closePatience = 100 * time.Millisecond

const maxHead = 64 << 10 // of an answer; what is longer is malformed

// Answer is what a server answered.
type Answer struct {
	Status     int
	Generation string // the Overlap-Generation header, "" if none
	Head       []byte // the header lines as they came, without the status line
	Body       []byte // at most MaxCheckedBody bytes, chunks put together
}

// Get returns the first value of a header, "" if there is none.
func (a *Answer) Get(name string) string {
	for line := range bytes.SplitSeq(a.Head, []byte("\n")) {
		key, value, ok := bytes.Cut(line, []byte(":"))
		if ok && strings.EqualFold(string(key), name) {
			return string(bytes.TrimSpace(value))
		}
	}
	return ""
}

// CheckBytes returns a Check for a server that answers JSON with the number of
// bytes it got as "bytes", as overlap serve does at /echo.
func CheckBytes(n int) func(*Answer) error {
	return func(a *Answer) error {
		var echo struct {
			Bytes *int `json:"bytes"`
		}
		if err := json.Unmarshal(a.Body, &echo); err != nil {
			return fmt.Errorf("answer %.100q: %w", a.Body, err)
		}
		if echo.Bytes == nil || *echo.Bytes != n {
			return fmt.Errorf("answer %.100q: want %d bytes", a.Body, n)
		}
		return nil
	}
}

// CheckBody returns a Check for a server whose answers have that body and no other. It must be
// shorter than MaxCheckedBody.
func CheckBody(want []byte) func(*Answer) error {
	return func(a *Answer) error {
		if !bytes.Equal(a.Body, want) {
			return fmt.Errorf("answer %.100q of %d bytes: want %.100q of %d", a.Body, len(a.Body), want, len(want))
		}
		return nil
	}
}

// httpClient is the connection of a client, if it has one, and what is read from it.
type httpClient struct {
	*client
	request []byte // head and body, written in one call
	dialer  *dialer
	tls     *tls.Config

	conn     net.Conn
	tcp      syscall.RawConn
	keep     bool      // conn may be used again
	deadline time.Time // what is set on conn
	buf      []byte    // buf[r:w] was read and not used yet
	r, w     int

	answer Answer
}

func newHTTPClient(c *client) *httpClient {
	h := &httpClient{client: c, dialer: newDialer(c.run.target, c.index), buf: make([]byte, 4096)}

	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", c.Method, c.Path, c.Host)
	if len(c.Body) > 0 || c.Method != "GET" && c.Method != "HEAD" {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(c.Body))
	}
	if c.mode == Close {
		b.WriteString("Connection: close\r\n")
	}
	b.WriteString("\r\n")
	b.Write(c.Body)
	h.request = b.Bytes()

	if c.TLS != nil {
		h.tls = c.TLS.Clone()
		if h.tls.ServerName == "" {
			h.tls.ServerName = c.Host
			if host, _, err := net.SplitHostPort(c.Host); err == nil {
				h.tls.ServerName = host
			}
		}
	}
	return h
}

func (h *httpClient) loop() {
	defer h.close()
	for {
		intended, ok := h.next(h.timer)
		if !ok {
			return
		}
		started := h.now()
		generation, err := h.exchange()
		if err != nil {
			if own := ownFault(err); own != nil {
				h.stop(own)
				return
			}
		}
		h.note(intended, started, generation, err)
		if h.conn != nil && !h.keep {
			h.closeLast()
		}
		wait := h.Think
		if h.Rate > 0 {
			wait = 0
		}
		if err != nil {
			wait = max(wait, failurePause)
		}
		if !h.pause(h.timer, wait) {
			return
		}
	}
}

// exchange makes one request, on the connection at hand or a new one, and leaves the
// connection to the caller: open for the next one if keep is set.
func (h *httpClient) exchange() (generation uint16, err error) {
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	now := time.Now()
	if h.conn != nil && h.closedWhileIdle(now) {
		h.close()
		h.mu.Lock()
		h.idleClosed++
		h.mu.Unlock()
	}
	if h.conn == nil {
		if err := h.dial(now); err != nil {
			return 0, err
		}
	} else if h.deadline.Sub(now) < h.Timeout {
		// Moving the deadline costs a timer's lock: not for each request.
		h.setDeadline(now.Add(h.Timeout + h.Timeout/16))
	}
	if _, err := h.conn.Write(h.request); err != nil {
		return 0, fmt.Errorf("write request: %w", err)
	}
	generation, h.keep, err = h.readAnswer()
	if err != nil {
		return generation, fmt.Errorf("read answer: %w", err)
	}
	if h.answer.Status < 200 || h.answer.Status >= 400 {
		return generation, &failure{Status, fmt.Errorf("status %d", h.answer.Status)}
	}
	if h.Check != nil {
		if err := h.Check(&h.answer); err != nil {
			return generation, &failure{Body, err}
		}
	}
	return generation, nil
}

func (h *httpClient) setDeadline(t time.Time) {
	h.deadline = t
	h.conn.SetDeadline(t)
}

func (h *httpClient) dial(now time.Time) error {
	deadline := now.Add(h.Timeout)
	conn, err := h.dialer.dial(deadline)
	if err != nil {
		return err
	}
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		conn.Close()
		return err
	}
	h.conn, h.tcp, h.deadline = conn, raw, deadline
	if h.tls == nil {
		return nil
	}
	secure := tls.Client(conn, h.tls)
	h.conn = secure
	if err := secure.Handshake(); err != nil {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	return nil
}

func (h *httpClient) close() {
	if h.conn != nil {
		h.conn.Close()
		h.conn, h.tcp = nil, nil
	}
	h.r, h.w = 0, 0
}

// closeLast closes a connection that is not used again, after the server did, if it
// does so soon: who closes first keeps the port for 60 s (TIME_WAIT), and if that were
// this side it would run out of ports. The answer is complete, so nothing that happens
// here is a failure.
func (h *httpClient) closeLast() {
	h.setDeadline(time.Now().Add(closePatience))
	var b [64]byte
	for {
		if _, err := h.conn.Read(b[:]); err != nil {
			break
		}
	}
	h.close()
}

// closedWhileIdle says whether the connection, on which nothing is under way, was
// closed by the server, or cannot be used because something came unasked (such as
// 408 before a close).
func (h *httpClient) closedWhileIdle(now time.Time) bool {
	if h.r != h.w {
		return true
	}
	pending, closed := peek(h.tcp)
	if !pending || closed || h.tls == nil {
		return pending || closed
	}
	// Under TLS what is there may be a session ticket, or the alert before a close.
	h.setDeadline(now.Add(time.Millisecond))
	n, err := h.conn.Read(h.buf[:1])
	h.setDeadline(now.Add(h.Timeout))
	return n > 0 || causeOf(err) != Timeout
}

// peek looks at a connection without waiting or taking anything.
func peek(conn syscall.RawConn) (pending, closed bool) {
	err := conn.Control(func(fd uintptr) {
		var b [1]byte
		for {
			n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			switch {
			case err == unix.EINTR:
				continue
			case err == unix.EAGAIN:
			case err != nil || n == 0:
				closed = true
			default:
				pending = true
			}
			return
		}
	})
	return pending, closed || err != nil
}

// fill reads more into buf, and makes room first.
func (h *httpClient) fill() error {
	if h.r == h.w {
		h.r, h.w = 0, 0
	}
	if h.w == len(h.buf) {
		if h.r > 0 {
			h.w = copy(h.buf, h.buf[h.r:h.w])
			h.r = 0
		} else if len(h.buf) >= maxHead {
			return malformed("header of more than %d bytes", maxHead)
		} else {
			h.buf = append(h.buf, make([]byte, len(h.buf))...)
		}
	}
	n, err := h.conn.Read(h.buf[h.w:])
	h.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// head is what the header says about what follows it.
type head struct {
	status     int
	keep       bool // the connection may be used again
	chunked    bool
	length     int64 // -1: not said
	generation uint16
}

var endOfHead = []byte("\r\n\r\n")

// readAnswer reads one whole answer.
func (h *httpClient) readAnswer() (generation uint16, keep bool, err error) {
	var hd head
	for {
		i := bytes.Index(h.buf[h.r:h.w], endOfHead)
		if i < 0 {
			if len := h.w - h.r; len >= 5 && !bytes.HasPrefix(h.buf[h.r:h.w], []byte("HTTP/")) {
				return 0, false, malformed("no HTTP answer: %.40q", h.buf[h.r:h.w])
			}
			if err := h.fill(); err != nil {
				return 0, false, err
			}
			continue
		}
		text := h.buf[h.r : h.r+i+2]
		h.r += i + len(endOfHead)
		if hd, err = h.parseHead(text); err != nil {
			return 0, false, err
		}
		if hd.status >= 200 || hd.status == http.StatusSwitchingProtocols {
			break
		}
	}
	h.answer.Status = hd.status
	h.answer.Body = h.answer.Body[:0]
	switch {
	case h.Method == "HEAD" || hd.status < 200 || hd.status == http.StatusNoContent || hd.status == http.StatusNotModified:
	case hd.chunked:
		err = h.readChunks()
	case hd.length >= 0:
		err = h.readBody(hd.length)
	default:
		hd.keep = false
		err = h.readToEnd()
	}
	return hd.generation, hd.keep && h.mode == KeepAlive, err
}

func (h *httpClient) parseHead(text []byte) (head, error) {
	hd := head{length: -1, generation: 0}
	i := bytes.IndexByte(text, '\n')
	line := text[:i]
	if len(line) < len("HTTP/1.1 200\r") || string(line[:7]) != "HTTP/1." || line[8] != ' ' {
		return hd, malformed("status line %.40q", line)
	}
	status, err := strconv.ParseUint(string(line[9:12]), 10, 16)
	if err != nil || status < 100 {
		return hd, malformed("status line %.40q", line)
	}
	hd.status = int(status)
	hd.keep = line[7] == '1'
	text = text[i+1:]
	if h.Check != nil {
		h.answer.Head = append(h.answer.Head[:0], text...)
		h.answer.Generation = ""
	}
	for len(text) > 0 {
		line, text, _ = bytes.Cut(text, []byte("\n"))
		colon := bytes.IndexByte(line, ':')
		if colon <= 0 {
			return hd, malformed("header line %.40q", line)
		}
		if err := h.parseHeader(&hd, line[:colon], line[colon+1:]); err != nil {
			return hd, err
		}
	}
	return hd, nil
}

// parseHeader takes note of the headers that matter. Their lengths tell them from
// nearly all others.
func (h *httpClient) parseHeader(hd *head, name, value []byte) error {
	switch len(name) {
	case len("Content-Length"):
		if equalFold(name, "content-length") {
			n, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 10, 63)
			if err != nil {
				return malformed("Content-Length %.40q", value)
			}
			hd.length = int64(n)
		}
	case len("Transfer-Encoding"):
		if equalFold(name, "transfer-encoding") {
			if !equalFold(bytes.TrimSpace(value), "chunked") {
				return malformed("Transfer-Encoding %.40q", value)
			}
			hd.chunked = true
		}
	case len("Connection"):
		if equalFold(name, "connection") {
			for token := range bytes.SplitSeq(value, []byte(",")) {
				token = bytes.TrimSpace(token)
				if equalFold(token, "close") {
					hd.keep = false
				} else if equalFold(token, "keep-alive") {
					hd.keep = true
				}
			}
		}
	case len(GenerationHeader):
		if equalFold(name, "overlap-generation") {
			hd.generation = h.generationOf(bytes.TrimSpace(value))
			h.answer.Generation = h.lastName
		}
	}
	return nil
}

// equalFold compares with a lower-case name of ASCII letters and hyphens.
func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// readBody takes n bytes of a body.
func (h *httpClient) readBody(n int64) error {
	for n > 0 {
		if h.r == h.w {
			if err := h.fill(); err != nil {
				return err
			}
		}
		part := h.buf[h.r:h.w]
		if int64(len(part)) > n {
			part = part[:n]
		}
		if room := MaxCheckedBody - len(h.answer.Body); h.Check != nil && room > 0 {
			h.answer.Body = append(h.answer.Body, part[:min(room, len(part))]...)
		}
		h.r += len(part)
		n -= int64(len(part))
	}
	return nil
}

func (h *httpClient) readToEnd() error {
	for {
		if err := h.readBody(int64(max(h.w-h.r, 1))); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (h *httpClient) readChunks() error {
	for {
		line, err := h.readLine()
		if err != nil {
			return err
		}
		digits, _, _ := bytes.Cut(line, []byte(";"))
		size, err := strconv.ParseUint(string(bytes.TrimSpace(digits)), 16, 62)
		if err != nil {
			return malformed("chunk size %.40q", line)
		}
		if size == 0 {
			break
		}
		if err := h.readBody(int64(size)); err != nil {
			return err
		}
		if line, err = h.readLine(); err != nil {
			return err
		} else if len(line) > 0 {
			return malformed("after a chunk: %.40q", line)
		}
	}
	for { // trailers
		if line, err := h.readLine(); err != nil || len(line) == 0 {
			return err
		}
	}
}

// readLine returns a line without its end, valid until the next read.
func (h *httpClient) readLine() ([]byte, error) {
	for {
		if i := bytes.IndexByte(h.buf[h.r:h.w], '\n'); i >= 0 {
			line := bytes.TrimSuffix(h.buf[h.r:h.r+i], []byte("\r"))
			h.r += i + 1
			return line, nil
		}
		if err := h.fill(); err != nil {
			return nil, err
		}
	}
}
