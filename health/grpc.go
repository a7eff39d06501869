package health

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// grpcProbe calls grpc.health.v1.Health/Check over cleartext HTTP/2 with prior
// knowledge; SERVING is healthy. The bytes are those of the health protocol
// (github.com/grpc/grpc, doc/health-checking.md) and of gRPC over HTTP/2 (the
// same, doc/PROTOCOL-HTTP2.md). They are few, so no gRPC library is needed.
type grpcProbe struct {
	authority string // as written
	address   string // to dial
	service   string // empty: the server as a whole
}

const (
	grpcMethod  = "/grpc.health.v1.Health/Check"
	grpcServing = 1 // HealthCheckResponse.SERVING

	grpcOK            = "0"
	grpcNotFound      = "5"
	grpcUnimplemented = "12"
)

// grpcStates are the names of HealthCheckResponse.ServingStatus.
var grpcStates = []string{"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"}

func (p grpcProbe) check(ctx context.Context, t Target) error {
	var request []byte
	if p.service != "" {
		request = protowire.AppendTag(request, 1, protowire.BytesType)
		request = protowire.AppendString(request, p.service)
	}
	frame := appendGRPCFrame(nil, request)
	req := (&http.Request{
		Method: http.MethodPost,
		URL:    &url.URL{Scheme: "http", Host: p.authority, Path: grpcMethod},
		Host:   p.authority,
		Header: http.Header{
			"Content-Type": {"application/grpc"},
			"Te":           {"trailers"},
			"User-Agent":   {userAgent},
		},
		Body:          io.NopCloser(bytes.NewReader(frame)),
		ContentLength: int64(len(frame)),
	}).WithContext(ctx)
	if deadline, ok := ctx.Deadline(); ok {
		ms := max(time.Until(deadline).Milliseconds(), 1)
		req.Header.Set("Grpc-Timeout", strconv.FormatInt(min(ms, 99999999), 10)+"m")
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)

	resp, body, err := exchange(req, t, Address{"tcp", p.address}, &protocols, nil)
	if err != nil {
		return err
	}
	return p.judge(resp, body)
}

// judge reads the answer: HTTP status, then the status that gRPC puts into the
// trailers (or into the headers, when it has no message), then the message.
func (p grpcProbe) judge(resp *http.Response, body []byte) error {
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answered HTTP %s%s", status(resp), excerpt(body))
	}
	kind := resp.Header.Get("Content-Type")
	if kind != "application/grpc" && !strings.HasPrefix(kind, "application/grpc+") && !strings.HasPrefix(kind, "application/grpc;") {
		return fmt.Errorf("answered with content type %q, not with gRPC%s", kind, excerpt(body))
	}
	code, message := resp.Trailer.Get("Grpc-Status"), resp.Trailer.Get("Grpc-Message")
	if code == "" {
		code, message = resp.Header.Get("Grpc-Status"), resp.Header.Get("Grpc-Message")
	}
	if text, err := url.PathUnescape(message); err == nil {
		message = text // percent-encoded on the wire
	}
	switch code {
	case grpcOK:
	case "":
		return errors.New("answered without a gRPC status")
	case grpcUnimplemented:
		return fmt.Errorf("the server does not implement grpc.health.v1.Health (gRPC status 12)%s", excerpt([]byte(message)))
	case grpcNotFound:
		return fmt.Errorf("the server does not know service %q (gRPC status 5)%s", p.service, excerpt([]byte(message)))
	default:
		return fmt.Errorf("answered gRPC status %.20s%s", code, excerpt([]byte(message)))
	}
	state, err := parseGRPCAnswer(body)
	if err != nil {
		return fmt.Errorf("read gRPC answer: %w", err)
	}
	if state == grpcServing {
		return nil
	}
	if state < uint64(len(grpcStates)) {
		return fmt.Errorf("answered %s", grpcStates[state])
	}
	return fmt.Errorf("answered the unknown health status %d", state)
}

// appendGRPCFrame appends one length-prefixed, uncompressed message.
func appendGRPCFrame(b, message []byte) []byte {
	b = append(b, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(message)))
	return append(b, message...)
}

// parseGRPCAnswer reads the status of the one HealthCheckResponse in body. A
// field that is left out has its zero value: UNKNOWN.
func parseGRPCAnswer(body []byte) (state uint64, err error) {
	if len(body) < 5 {
		return 0, io.ErrUnexpectedEOF
	}
	if body[0] != 0 {
		return 0, errors.New("it is compressed, which was not asked for")
	}
	n, message := binary.BigEndian.Uint32(body[1:]), body[5:]
	if uint64(n) > uint64(len(message)) {
		return 0, io.ErrUnexpectedEOF
	}
	if uint64(n) < uint64(len(message)) {
		return 0, errors.New("there is more than one message")
	}
	for len(message) > 0 {
		number, kind, tag := protowire.ConsumeTag(message)
		if tag < 0 {
			return 0, protowire.ParseError(tag)
		}
		message = message[tag:]
		size := 0
		if number == 1 && kind == protowire.VarintType {
			state, size = protowire.ConsumeVarint(message)
		} else {
			size = protowire.ConsumeFieldValue(number, kind, message)
		}
		if size < 0 {
			return 0, protowire.ParseError(size)
		}
		message = message[size:]
	}
	return state, nil
}
