package bench_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"

	"overlap/lifecycle/bench"
)

// 64 clients post to /echo, half of them with a connection for each request, and
// verify what comes back.
func ExampleLoad_Run() {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, `{"bytes":%d}`, n)
	}))
	defer srv.Close()

	var marks bench.Marks // marks.Add(bench.Mark{Kind: bench.Switch, Generation: 2}) at each switch
	result, err := bench.Load{
		Address:  srv.Listener.Addr().String(),
		Path:     "/echo",
		Body:     []byte("hello"),
		Check:    bench.CheckBytes(len("hello")),
		Requests: 1000,
	}.Run(context.Background(), &marks)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(result.Outcome())
	// Output: None of 1,000 requests failed
}
