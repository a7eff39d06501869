package health

import (
	"bytes"
	"io"
	"log"
	"net"
	"net/http"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

// serveGRPC serves HTTP/2 without TLS.
func serveGRPC(t *testing.T, h http.HandlerFunc) Address {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, Protocols: new(http.Protocols), ErrorLog: quiet()}
	srv.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.Serve(ln)
	}()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
	return Address{"tcp", ln.Addr().String()}
}

func answerGRPC(w http.ResponseWriter, state uint64) {
	w.Header().Set("Content-Type", "application/grpc")
	var message []byte
	if state != 0 {
		message = protowire.AppendTag(nil, 1, protowire.VarintType)
		message = protowire.AppendVarint(message, state)
	}
	w.Write(appendGRPCFrame(nil, message))
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
}

func TestGRPC(t *testing.T) {
	failure := func(w http.ResponseWriter, code, message string) { // "trailers only"
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Grpc-Status", code)
		w.Header().Set("Grpc-Message", message)
	}
	addr := serveGRPC(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Method != "POST" || r.URL.Path != "/grpc.health.v1.Health/Check" || r.Header.Get("Te") != "trailers" ||
			r.Header.Get("Content-Type") != "application/grpc" || r.Header.Get("Grpc-Timeout") == "" || len(body) < 5 {
			failure(w, "3", "not a call of the health protocol")
			return
		}
		switch service := string(bytes.TrimLeft(body[5:], "\x0a\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0b\x0c\x0d")); service {
		case "", "up":
			answerGRPC(w, grpcServing)
		case "zero":
			answerGRPC(w, 0)
		case "down":
			answerGRPC(w, 2)
		case "strange":
			answerGRPC(w, 77)
		case "unimplemented":
			failure(w, "12", "")
		case "late":
			w.Header().Set("Content-Type", "application/grpc")
			w.Write(appendGRPCFrame(nil, []byte{8, 1}))
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", "14")
			w.Header().Set(http.TrailerPrefix+"Grpc-Message", "not%20yet")
		case "bare":
			w.Header().Set("Content-Type", "application/grpc")
			w.Write(appendGRPCFrame(nil, []byte{8, 1}))
		case "short":
			w.Header().Set("Content-Type", "application/grpc+proto")
			w.Write([]byte{0, 0, 0, 0, 9})
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
		case "web":
			io.WriteString(w, "hello")
		case "lost":
			http.Error(w, "no such page", http.StatusNotFound)
		default:
			failure(w, "5", "unknown service")
		}
	})
	for _, service := range []string{"", "/", "/up"} {
		if err := check(t, mustParse(t, "grpc://"+addr.Addr+service, Options{}), Target{}); err != nil {
			t.Error(err)
		}
	}
	for service, want := range map[string]string{
		"zero":          "answered UNKNOWN",
		"down":          "answered NOT_SERVING",
		"strange":       "unknown health status 77",
		"unimplemented": "does not implement grpc.health.v1.Health",
		"late":          `answered gRPC status 14: "not yet"`,
		"bare":          "without a gRPC status",
		"short":         "read gRPC answer: unexpected EOF",
		"web":           "not with gRPC",
		"lost":          `answered HTTP 404 Not Found: "no such page"`,
		"other":         `does not know service "other"`,
	} {
		wantError(t, check(t, mustParse(t, "grpc://"+addr.Addr+"/"+service, Options{}), Target{}), want)
	}
	plain := serve(t, func(http.ResponseWriter, *http.Request) {})
	plain.Config.ErrorLog = quiet()
	wantError(t, check(t, mustParse(t, "grpc://"+address(plain).Addr, Options{}), Target{}), "request to ")
}

func FuzzGRPCAnswer(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 2, 8, 1})
	f.Add([]byte{0, 0, 0, 0, 0})
	f.Add([]byte{1, 0, 0, 0, 2, 8, 1})
	f.Add([]byte{0, 0, 0, 0, 4, 18, 0, 8, 1})
	f.Fuzz(func(t *testing.T, body []byte) {
		parseGRPCAnswer(body)
	})
}
