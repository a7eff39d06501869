package netns

import (
	"net"
	"os"
	"os/exec"
	"testing"
)

const envWithout6 = "OVERLAP_TEST_WITHOUT_IPV6"

// Without6 runs the test that calls it again, where IPv6 is off as in Docker's default network, and returns true there.
// Its outcome is the test's. The binary must call [Enter].
func Without6(t *testing.T) bool {
	t.Helper()
	if os.Getenv(envWithout6) == t.Name() {
		for _, name := range []string{"all", "default", "lo"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0); err != nil {
				t.Fatal(err)
			}
		}
		if ln, err := net.Listen("tcp", "[::1]:0"); err == nil {
			ln.Close()
			t.Fatal("there is IPv6 still")
		}
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("a network without IPv6 takes root")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), envWithout6+"="+t.Name())
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	return false
}
