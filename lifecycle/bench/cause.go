package bench

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

// Cause says why a request failed. The zero value is no failure.
type Cause uint8

// The causes. An error that fits several is booked under the first that fits.
const (
	// Refused: the connection was refused. For datagrams: ICMP said that nobody
	// is there.
	Refused Cause = iota + 1
	// Reset: the connection was reset, while connecting, writing or reading.
	Reset
	// EOF: the server closed the connection before the answer was whole.
	EOF
	// Timeout: no whole answer within Load.Timeout. For datagrams: lost.
	Timeout
	// Status: an answer with a status below 200, or 400 and above.
	Status
	// Body: Load.Check refused the answer, or an echoed datagram was changed or cut.
	Body
	// Malformed: what came is no HTTP/1 answer.
	Malformed
	// Other: anything else, such as an unreachable host or a TLS error.
	Other
	// Unsent: a request of an open loop that was due and never began, because no client was free.
	Unsent

	causes = int(Unsent) + 1
)

var causeNames = [causes]string{"", "refused", "reset", "eof", "timeout", "status", "body", "malformed", "other", "unsent"}

func (c Cause) String() string {
	if int(c) < len(causeNames) {
		return causeNames[c]
	}
	return fmt.Sprintf("Cause(%d)", uint8(c))
}

// MarshalText returns the name, so that causes are words in JSON.
func (c Cause) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (c *Cause) UnmarshalText(text []byte) error {
	for i, name := range causeNames {
		if i > 0 && name == string(text) {
			*c = Cause(i)
			return nil
		}
	}
	return fmt.Errorf("unknown cause %q", text)
}

// ErrGenerator is wrapped by the errors of Run that are the load generator's own
// fault, not the server's: no source port or descriptor left.
var ErrGenerator = errors.New("the load generator itself failed")

// failure is an answer that came and is wrong.
type failure struct {
	cause Cause
	err   error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func malformed(format string, args ...any) error {
	return &failure{Malformed, fmt.Errorf(format, args...)}
}

// causeOf books an error under one cause.
func causeOf(err error) Cause {
	var wrong *failure
	var netErr net.Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &wrong):
		return wrong.cause
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNABORTED):
		return Reset
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return EOF
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT),
		errors.As(err, &netErr) && netErr.Timeout():
		return Timeout
	}
	return Other
}

// ownFault returns an error that wraps ErrGenerator where err says that this side
// ran out of something, else nil.
func ownFault(err error) error {
	switch {
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%w: no source port left for a new connection (use keep-alive, a rate, or fewer clients): %w", ErrGenerator, err)
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return fmt.Errorf("%w: no file descriptor left for a new connection (raise the limit, or use fewer clients): %w", ErrGenerator, err)
	}
	return nil
}
