package reuse

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const lateVariable = "OVERLAP_TEST_LATE"

// TestLocateLate: no client's packet passes for one of the locator's that is late. Receive packet
// steering (RPS) makes loopback's packets late, which needs a sysfs of the network namespace's own.
func TestLocateLate(t *testing.T) {
	if os.Getenv(lateVariable) == "" {
		if os.Geteuid() != 0 {
			t.Skip("only root can steer loopback's packets")
		}
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestLocateLate$", "-test.v")
		cmd.Env = append(os.Environ(), lateVariable+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if errors.Is(err, os.ErrPermission) {
			t.Skip("no mount namespaces here:", err)
		}
		if err != nil {
			t.Error(err)
		}
		return
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Skip("no mounts here:", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		t.Skip("no mounts here:", err)
	}
	if err := os.WriteFile("/sys/class/net/lo/queues/rx-0/rps_cpus", []byte("3"), 0); err != nil {
		t.Skip("no RPS here:", err)
	}
	for _, network := range []string{"tcp", "udp"} {
		m := Open(freeAddress(t, network), -1)
		defer m.Leave()
		var want []uint64
		for range 2 { // told apart by a single packet
			if err := m.addHolderLocked(); err != nil {
				t.Fatal(err)
			}
			want = append(want, m.holders[len(m.holders)-1].inode)
		}
		if err := attach(m.holders[0].fd, serveProgram(network, []int{0})); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		var clients sync.WaitGroup
		clients.Go(func() {
			for ctx.Err() == nil {
				sendLocator(m.addr, rand.IntN(2))
				time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
			}
		})
		located, unsure, wrong := 0, 0, 0
		for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
			got, err := locate(m.addr)
			switch {
			case err != nil:
				unsure++ // it may say that it can't, but must not err
			case slices.Equal(got, want):
				located++
			default:
				wrong++
			}
		}
		stop()
		clients.Wait()
		t.Logf("%s: located %d times, %d times unsure, %d times wrong", network, located, unsure, wrong)
		if wrong > 0 || located == 0 {
			t.Errorf("%s: %d wrong orders beside %d right ones", network, wrong, located)
		}
	}
}
