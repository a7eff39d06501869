package health

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/shlex"
)

// The kinds of probes, as [Spec.Kind] names them.
const (
	KindHTTP   = "http"
	KindHTTPS  = "https"
	KindTCP    = "tcp"
	KindGRPC   = "grpc"
	KindExec   = "exec"
	KindNotify = "notify"
	KindNone   = "none"
)

// forms is what an unknown specification is answered with.
const forms = "/path, http://host:port/path, https://host:port/path, tcp, tcp://host:port, " +
	"grpc://host:port[/service], exec:COMMAND, notify or none"

// Options say how probes are made. The zero value is useful.
type Options struct {
	// CAFile names a PEM file; https probes then trust its certificates and no
	// others. Empty: the system's.
	CAFile string
	// Insecure lets https probes accept any certificate. It excludes CAFile.
	Insecure bool
}

// A Spec is one probe. Make it with [Parse]; the zero Spec is never healthy.
// It is immutable, and may be used by several goroutines at once.
type Spec struct {
	kind  string
	text  string
	probe prober
}

// prober is what differs between the kinds. check honours ctx: it returns soon
// after ctx has ended and leaves nothing behind.
type prober interface {
	check(ctx context.Context, t Target) error
}

// String returns the specification as it was parsed, without a password.
func (s Spec) String() string { return s.text }

// Kind returns one of the Kind constants, for the zero Spec "".
func (s Spec) Kind() string { return s.kind }

// Check probes t once. It returns nil when t is healthy, else an error that
// names the probe and what it saw. The only time limit is ctx's.
func (s Spec) Check(ctx context.Context, t Target) error {
	if err := s.check(ctx, t); err != nil {
		return fmt.Errorf("health check %s: %w", s.text, err)
	}
	return nil
}

// check is Check without the probe's name. Where ctx cut the probe off, the
// error leads with the reason that ctx gives.
func (s Spec) check(ctx context.Context, t Target) error {
	if s.probe == nil {
		return errors.New("the specification is empty")
	}
	err := s.probe.check(ctx, t)
	if err == nil || ctx.Err() == nil {
		return err
	}
	cause := context.Cause(ctx)
	if errors.Is(err, cause) || err.Error() == ctx.Err().Error() {
		return cause
	}
	// The cause says it for people, and the bare fact behind what was tried nothing more.
	if tried, ok := strings.CutSuffix(err.Error(), ": "+ctx.Err().Error()); ok {
		return fmt.Errorf("%w: %s", cause, tried)
	}
	return fmt.Errorf("%w: %w", cause, err)
}

// Missing returns an error where the command of an exec probe is not there: not in this process's
// PATH, or not at its absolute path. A relative path is the target's directory's affair, which may
// be filled by the program that is checked. Of other kinds nothing is missing.
func (s Spec) Missing() error {
	p, ok := s.probe.(execProbe)
	if !ok {
		return nil
	}
	name := p.words[0]
	if strings.ContainsRune(name, filepath.Separator) && !filepath.IsAbs(name) {
		return nil
	}
	_, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("find command: %w", err)
	}
	return nil
}

// Parse reads a specification:
//
//	/path                     HTTP GET on the service's first TCP address
//	http://host:port/path     HTTP GET there
//	https://host:port/path    the same over TLS
//	tcp                       connect to each TCP and unix address of the service
//	tcp://host:port           connect there
//	grpc://host:port          grpc.health.v1.Health/Check, over cleartext HTTP/2
//	grpc://host:port/service  the same for one service
//	exec:COMMAND ARG…         run a command; split into words, quotes are understood, no shell
//	notify                    wait for READY=1
//	none                      always healthy
//
// An unknown specification is an error that lists these forms. So is a CA file
// that cannot be read or holds no certificate, whatever the specification is.
func Parse(spec string, o Options) (Spec, error) {
	config, err := o.tlsConfig()
	if err != nil {
		return Spec{}, err
	}
	s, err := parse(strings.TrimSpace(spec), config)
	if err != nil {
		return Spec{}, fmt.Errorf("parse health check %q: %w", redact(spec), err)
	}
	return s, nil
}

func parse(spec string, config *tls.Config) (Spec, error) {
	switch spec {
	case KindTCP:
		return Spec{KindTCP, spec, tcpProbe{}}, nil
	case KindNotify:
		return Spec{KindNotify, spec, notifyProbe{}}, nil
	case KindNone:
		return Spec{KindNone, spec, noProbe{}}, nil
	case "":
		return Spec{}, errors.New("it is empty; want " + forms)
	}
	if strings.HasPrefix(spec, "/") {
		return parsePath(spec)
	}
	if command, ok := strings.CutPrefix(spec, "exec:"); ok {
		return parseExec(spec, command)
	}
	scheme, _, ok := strings.Cut(spec, "://")
	if !ok {
		return Spec{}, unknown(spec)
	}
	switch scheme {
	case KindHTTP, KindHTTPS, KindTCP, KindGRPC:
	default:
		return Spec{}, unknown(spec)
	}
	u, err := parseURL(spec)
	if err != nil {
		return Spec{}, err
	}
	switch scheme {
	case KindHTTP:
		return Spec{KindHTTP, u.Redacted(), httpProbe{url: u}}, nil
	case KindHTTPS:
		return Spec{KindHTTPS, u.Redacted(), httpProbe{url: u, tls: config}}, nil
	case KindTCP:
		return parseTCP(u)
	default:
		return parseGRPC(u)
	}
}

// unknown is the error for what is none of the forms, with a guess at what was
// meant.
func unknown(spec string) error {
	lower := strings.ToLower(spec)
	guess := ""
	switch {
	case lower == KindHTTP || lower == KindHTTPS:
		guess = lower + "://host:port/path"
	case lower == KindGRPC:
		guess = "grpc://host:port"
	case lower == KindExec:
		guess = "exec:COMMAND"
	case lower != spec && isForm(lower):
		guess = lower
	case strings.Contains(spec, "://"):
	default:
		host, path, slash := strings.Cut(spec, "/")
		if _, port, err := net.SplitHostPort(host); err == nil && validPort(port) == nil {
			guess = "tcp://" + spec
			if slash {
				guess = "http://" + host + "/" + path
			}
		} else if !strings.ContainsAny(spec, " :,") { // a comma: they may be several
			guess = "/" + spec
		}
	}
	if guess != "" {
		return fmt.Errorf("it is of no known form; did you mean %q? The forms: %s", redact(guess), forms)
	}
	return errors.New("it is of no known form; want " + forms)
}

func isForm(s string) bool {
	_, err := parse(s, nil)
	return err == nil
}

func parsePath(spec string) (Spec, error) {
	// A host before it, or "//a/b" would be read as a host and a path.
	u, err := url.Parse("http://localhost" + spec)
	if err != nil {
		return Spec{}, bare(err)
	}
	u.Host, u.Fragment, u.RawFragment = "", "", ""
	return Spec{KindHTTP, spec, httpProbe{url: u}}, nil
}

func parseExec(spec, command string) (Spec, error) {
	words, err := shlex.Split(command)
	if err != nil {
		return Spec{}, fmt.Errorf("split the command into words: %w", err)
	}
	if len(words) == 0 || words[0] == "" {
		return Spec{}, errors.New("the command is empty; want exec:COMMAND ARG…")
	}
	for _, word := range words {
		if strings.ContainsRune(word, 0) {
			return Spec{}, errors.New("the command has a NUL byte in it")
		}
	}
	return Spec{KindExec, spec, execProbe{words}}, nil
}

func parseTCP(u *url.URL) (Spec, error) {
	if u.Port() == "" {
		return Spec{}, errors.New("the port is missing; want tcp://host:port")
	}
	if (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.User != nil {
		return Spec{}, errors.New("there is more than host and port; want tcp://host:port")
	}
	return Spec{KindTCP, "tcp://" + u.Host, tcpProbe{hostPort(u)}}, nil
}

func parseGRPC(u *url.URL) (Spec, error) {
	if u.Port() == "" {
		return Spec{}, errors.New("the port is missing; want grpc://host:port[/service]")
	}
	if u.RawQuery != "" || u.User != nil {
		return Spec{}, errors.New("there is more than host, port and service; want grpc://host:port[/service]")
	}
	service := strings.Trim(u.Path, "/")
	return Spec{KindGRPC, u.String(), grpcProbe{authority: u.Host, address: hostPort(u), service: service}}, nil
}

// parseURL wants a host and a sound port where there is one. No host means
// localhost, as everywhere in Go's net package.
func parseURL(spec string) (*url.URL, error) {
	u, err := url.Parse(spec)
	if err != nil {
		return nil, bare(err)
	}
	if u.Host == "" || u.Opaque != "" {
		return nil, errors.New("the host is missing")
	}
	if strings.HasSuffix(u.Host, ":") {
		return nil, errors.New("the port is missing after the colon")
	}
	if port := u.Port(); port != "" {
		if err := validPort(port); err != nil {
			return nil, err
		}
	}
	if u.Hostname() == "" {
		u.Host = "localhost" + u.Host
	}
	u.Fragment, u.RawFragment = "", ""
	return u, nil
}

func validPort(port string) error {
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("port %q is not between 1 and 65535", port)
	}
	return nil
}

// hostPort is what to dial for u.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "80"
		if u.Scheme == KindHTTPS {
			port = "443"
		}
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// bare takes the URL, which may hold a password, out of an error of net/url.
func bare(err error) error {
	var e *url.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}

// redact hides what may be a password in a specification that is not
// understood.
func redact(spec string) string {
	scheme, rest, ok := strings.Cut(spec, "://")
	if !ok {
		return spec
	}
	authority := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority = rest[:i]
	}
	at := strings.LastIndex(authority, "@")
	if at < 0 {
		return spec
	}
	user, _, secret := strings.Cut(authority[:at], ":")
	if !secret {
		return spec
	}
	return scheme + "://" + user + ":xxxxx" + rest[at:]
}

func (o Options) tlsConfig() (*tls.Config, error) {
	if o.CAFile == "" {
		return &tls.Config{InsecureSkipVerify: o.Insecure}, nil
	}
	if o.Insecure {
		return nil, errors.New("set up https health checks: a CA file and accepting any certificate exclude each other")
	}
	pem, err := os.ReadFile(o.CAFile)
	if err != nil {
		return nil, fmt.Errorf("read CA file of health checks: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read CA file of health checks: %s holds no PEM certificate", o.CAFile)
	}
	return &tls.Config{RootCAs: pool}, nil
}
