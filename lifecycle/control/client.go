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
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// Client asks the owner behind one control socket. It holds no connection, needs no
// Close, and is safe for concurrent use.
//
// Errors wrap the reason: fs.ErrNotExist where there is no socket, ECONNREFUSED where
// the owner is dead, fs.ErrPermission where it is another user's, the context's error,
// ErrNoOutcome, or *StatusError.
type Client struct {
	path string
	user int // who must listen; anybody where it is negative
	http *http.Client
}

// StatusError is an owner's refusal.
type StatusError struct {
	Code int    // the HTTP status
	Text string // the owner's words
}

func (e *StatusError) Error() string { return e.Text }

// Dial returns a client for the socket at the path. It does not connect yet.
func Dial(path string) *Client { return DialUser(path, -1) }

// DialUser is Dial for a directory of that user, who alone is asked: a link in place of the
// socket could lead root to anybody's.
func DialUser(path string, uid int) *Client {
	c := &Client{path: path, user: uid}
	c.http = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := c.connect(ctx)
			if err != nil {
				return nil, &unreachable{err}
			}
			return conn, nil
		},
	}}
	return c
}

// connect looks at who listens.
func (c *Client) connect(ctx context.Context) (*net.UnixConn, error) {
	conn, err := dialUnix(ctx, c.path)
	if err != nil {
		return nil, err
	}
	_, uid, err := peerOf(conn)
	if err == nil && c.user >= 0 && uid != c.user {
		err = fmt.Errorf("user %d listens there, not user %d: %w", uid, c.user, fs.ErrPermission)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// unreachable marks that nothing was asked, because nobody was there.
type unreachable struct{ error }

func (u *unreachable) Unwrap() error { return u.error }

// Status asks what is known of the service.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var status Status
	if err := c.status(ctx, "/v1/status", &status); err != nil {
		return Status{}, fmt.Errorf("ask %s for the status: %w", c.path, err)
	}
	return status, nil
}

// Brief is Status without the connections, whose count can take the owner milliseconds.
func (c *Client) Brief(ctx context.Context) (Status, error) {
	var status Status
	if err := c.status(ctx, "/v1/status?"+queryConnections+"=false", &status); err != nil {
		return Status{}, fmt.Errorf("ask %s for the status: %w", c.path, err)
	}
	return status, nil
}

func (c *Client) status(ctx context.Context, path string, into *Status) error {
	response, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	return json.NewDecoder(io.LimitReader(response.Body, maxMessage)).Decode(into)
}

// Reload asks for the next generation and follows it to the outcome, which may be a
// failed one: the error says only that no outcome is known. Each event is given to the
// function as it comes, unless that is nil. The end of the context stops watching, not
// the handover.
func (c *Client) Reload(ctx context.Context, request ReloadRequest, events func(Event)) (Outcome, error) {
	outcome, err := c.follow(ctx, "/v1/reload", request, events)
	if err != nil {
		return Outcome{}, fmt.Errorf("ask %s for a reload: %w", c.path, err)
	}
	return outcome, nil
}

// Stop asks for a drain and the end, and follows it as Reload does.
func (c *Client) Stop(ctx context.Context, request StopRequest, events func(Event)) (Outcome, error) {
	outcome, err := c.follow(ctx, "/v1/stop", request, events)
	if err != nil {
		return Outcome{}, fmt.Errorf("ask %s to stop: %w", c.path, err)
	}
	return outcome, nil
}

func (c *Client) follow(ctx context.Context, path string, request any, events func(Event)) (Outcome, error) {
	response, err := c.do(ctx, http.MethodPost, path, request)
	if err != nil {
		return Outcome{}, err
	}
	defer response.Body.Close()
	reader := bufio.NewReader(response.Body)
	for {
		line, err := readLine(reader)
		switch {
		case ctx.Err() != nil && err != nil:
			return Outcome{}, ctx.Err()
		case ended(err):
			return Outcome{}, ErrNoOutcome
		case err != nil:
			return Outcome{}, err
		}
		var e Event
		if err := json.Unmarshal(line, &e); err != nil {
			return Outcome{}, fmt.Errorf("read an event: %w", err)
		}
		if events != nil {
			events(e)
		}
		if e.Final {
			if e.Outcome == nil {
				return Outcome{}, ErrNoOutcome
			}
			return *e.Outcome, nil
		}
	}
}

// ended says whether the other side went away; ECONNRESET is what its death looks
// like while something of ours lies unread there.
func ended(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func (c *Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var reader io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		reader = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://overlap"+path, reader)
	if err != nil {
		return nil, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		// Only the reason: the URL is of no use to who reads it.
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var nobody *unreachable
		if errors.As(err, &nobody) {
			return nil, nobody.error
		}
		return nil, fmt.Errorf("%w: %w", ErrNoOutcome, err)
	}
	if response.StatusCode != http.StatusOK {
		defer response.Body.Close()
		return nil, refusal(response)
	}
	return response, nil
}

func refusal(response *http.Response) error {
	var f failure
	data, err := io.ReadAll(io.LimitReader(response.Body, maxMessage))
	if err != nil || json.Unmarshal(data, &f) != nil || f.Error == "" {
		f.Error = strings.ToLower(response.Status)
	}
	return &StatusError{Code: response.StatusCode, Text: f.Error}
}

// Session opens a session with the owner. It is not started: set Handle first. The
// context bounds only the opening.
func (c *Client) Session(ctx context.Context) (*Session, error) {
	s, err := c.session(ctx)
	if err != nil {
		return nil, fmt.Errorf("open a session with %s: %w", c.path, err)
	}
	return s, nil
}

func (c *Client) session(ctx context.Context) (_ *Session, err error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		conn.SetDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	defer func() {
		if !stop() {
			<-interrupted
			err = ctx.Err()
		}
		if err != nil {
			conn.Close()
		}
	}()
	if _, err := io.WriteString(conn, "POST /v1/session HTTP/1.1\r\nHost: overlap\r\nConnection: Upgrade\r\nUpgrade: "+
		sessionProtocol+"\r\nContent-Length: 0\r\n\r\n"); err != nil {
		return nil, err
	}
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, &http.Request{Method: http.MethodPost})
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		defer response.Body.Close()
		return nil, refusal(response)
	}
	return newSession(conn, reader), nil
}
