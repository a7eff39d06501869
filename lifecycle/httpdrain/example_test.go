package httpdrain_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"overlap/lifecycle/httpdrain"
)

func Example() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "hello")
	})}
	d := httpdrain.New(srv, httpdrain.Options{})
	serving := make(chan error, 1)
	go func() { serving <- d.Serve(ln) }()

	res, err := http.Get("http://" + ln.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	body, _ := io.ReadAll(res.Body)
	res.Body.Close()
	fmt.Println(string(body))

	// The next version has the port now, and the queue of this listener is empty.
	d.Announce()
	closed := make(chan struct{})
	ln.Close()
	close(closed)

	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Second)
	defer cancel()
	report, err := d.Drain(ctx, closed, 10*time.Millisecond)
	fmt.Println(report.Finished, report.Cut, err, <-serving)
	// Output:
	// hello
	// 1 0 <nil> <nil>
}
