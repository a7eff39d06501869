package health_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"

	"overlap/health"
)

// A server that needs a moment is let through as soon as it is well.
func ExampleGate_Wait() {
	asked := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked < 3 {
			http.Error(w, "warming up", http.StatusServiceUnavailable)
		}
	}))
	defer srv.Close()
	target := health.Target{Addresses: []health.Address{{Network: "tcp", Addr: srv.Listener.Addr().String()}}}

	spec, err := health.Parse("/healthz", health.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(spec.Check(context.Background(), target))
	fmt.Println(health.Gate{}.Wait(context.Background(), target, spec))
	fmt.Println("asked", asked, "times")
	// Output:
	// health check /healthz: answered 503 Service Unavailable: "warming up"
	// <nil>
	// asked 3 times
}

func ExampleParse_hint() {
	_, err := health.Parse("localhost:8080/healthz", health.Options{})
	fmt.Println(err)
	// Output:
	// parse health check "localhost:8080/healthz": it is of no known form; did you mean "http://localhost:8080/healthz"? The forms: /path, http://host:port/path, https://host:port/path, tcp, tcp://host:port, grpc://host:port[/service], exec:COMMAND, notify or none
}
