package health

import (
	"io"
	"net/http"
)

// Readiness returns a handler for load balancers that ask a server whether to
// send it more: 200 while it is starting or serving, 503 while draining says
// that it drains. It may be asked by many goroutines at once, and so draining
// may.
//
// This is readiness, not liveness. A server that drains is well, and busy with
// its last clients: whatever kills and restarts servers must not ask here.
// Starting counts as ready because the gate, not the load balancer, decides
// when a new generation gets its first client.
func Readiness(draining func() bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("Cache-Control", "no-store")
		if draining() {
			// The next generation serves on the same address.
			h.Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			io.WriteString(w, "draining\n")
			return
		}
		io.WriteString(w, "ok\n")
	})
}
