package cli

import (
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The test binary is also the program of a launcher that died.
const envListen = "CLI_TEST_LISTEN"

func TestMain(m *testing.M) {
	if addr := os.Getenv(envListen); addr != "" {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(ln.Addr())
		for {
			time.Sleep(time.Hour)
		}
	}
	goleak.VerifyTestMain(m)
}
