package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

const (
	bodyLimit   = 64 << 10 // bytes of an answer that are read
	excerptSize = 200      // bytes of it that an error shows
	userAgent   = "overlap-health"
)

// httpProbe sends one GET over a connection of its own. 2xx is healthy. No
// redirect is followed, no proxy used. Of the body, 64 KiB are read, and one
// that breaks off before is not healthy.
type httpProbe struct {
	url *url.URL    // without a host: on the service's first address
	tls *tls.Config // for https
}

func (p httpProbe) check(ctx context.Context, t Target) error {
	u := *p.url
	a := Address{Network: "tcp"}
	if u.Host != "" {
		a.Addr = hostPort(&u)
	} else {
		first, err := t.first()
		if err != nil {
			return err
		}
		a, u.Host = first, first.Addr
		if a.Network == "unix" {
			u.Host = "localhost"
		}
	}
	req := (&http.Request{
		Method: http.MethodGet,
		URL:    &u,
		Host:   u.Host,
		Header: http.Header{"User-Agent": {userAgent}, "Accept": {"*/*"}},
	}).WithContext(ctx)
	if u.User != nil {
		password, _ := u.User.Password()
		req.SetBasicAuth(u.User.Username(), password)
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true) // over TLS, where the server wants it

	resp, body, err := exchange(req, t, a, &protocols, p.tls)
	if resp != nil && (resp.StatusCode < 200 || resp.StatusCode > 299) {
		if to := resp.Header.Get("Location"); to != "" {
			return fmt.Errorf("answered %s to %q, which is not followed", status(resp), to)
		}
		return fmt.Errorf("answered %s%s", status(resp), excerpt(body))
	}
	return err
}

// exchange dials a, sends req over that connection alone, reads up to bodyLimit
// bytes of the answer, and closes. Where the answer breaks off, it returns what
// it has got and an error.
func exchange(req *http.Request, t Target, a Address, protocols *http.Protocols, config *tls.Config) (*http.Response, []byte, error) {
	conn, err := t.dial(req.Context(), a.Network, a.Addr)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to %s: %w", a.Addr, err)
	}
	defer conn.Close()

	// The transport may dial again behind our back (HTTP/2 retries a refused
	// stream): it gets this connection once, and then nothing.
	once := make(chan net.Conn, 1)
	once <- conn
	transport := &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			select {
			case c := <-once:
				return c, nil
			default:
				return nil, errors.New("the server wants the request on another connection")
			}
		},
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: bodyLimit,
		Protocols:              protocols,
		TLSClientConfig:        config.Clone(),
	}
	defer transport.CloseIdleConnections()

	// RoundTrip and no http.Client: a redirect is an answer, not a way.
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, nil, fmt.Errorf("request to %s: %w", a.Addr, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, bodyLimit))
	if err != nil {
		return resp, body, fmt.Errorf("answered %s, but the body broke off: %w", status(resp), err)
	}
	return resp, body, nil
}

// status is the code and its standard text, whatever words the server chose.
func status(resp *http.Response) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode)))
}

// excerpt is the beginning of a body, to stand behind a message.
func excerpt(body []byte) string {
	s := strings.TrimSpace(string(body))
	switch {
	case s == "":
		return ""
	case len(s) > excerptSize:
		return fmt.Sprintf(": %q…", strings.ToValidUTF8(s[:excerptSize], ""))
	default:
		return fmt.Sprintf(": %q", s)
	}
}
