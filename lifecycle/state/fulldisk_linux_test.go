package state

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

// A real disk that is full: a small tmpfs in a mount namespace of the test's own.
func TestFullDisk(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "STATE_TEST_CHILD=full disk", "STATE_TEST_ROOT="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || strings.HasPrefix(string(out), "no tmpfs") {
		if os.Getenv("OVERLAP_TEST_REQUIRE") == "1" {
			t.Fatalf("no mount namespace: %v %s", err, out)
		}
		t.Skipf("needs a mount namespace (as root, or with user namespaces allowed): %v %s", err, out)
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func fullDisk(root string) error {
	err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "")
	if err == nil {
		err = syscall.Mount("tmpfs", root, "tmpfs", 0, "size=256k,mode=0700")
	}
	if err != nil {
		return fmt.Errorf("no tmpfs: %w", err)
	}
	d, err := Open(root, "web")
	if err != nil {
		return err
	}
	if err := d.Write(record(1)); err != nil {
		return err
	}
	before, err := d.Read(1)
	if err != nil {
		return err
	}
	filler := make([]byte, 1<<20)
	if err := os.WriteFile(filepath.Join(root, "filler"), filler, 0o600); !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("the disk is not full: %w", err)
	}
	bigger := record(1)
	bigger.Directory = strings.Repeat("x", 10_000)
	err = d.Write(bigger)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "old one stays") {
		return fmt.Errorf("write on a full disk: %w", err)
	}
	if after, err := d.Read(1); err != nil || !reflect.DeepEqual(before, after) {
		return fmt.Errorf("the old record is not whole: %+v, %w", after, err)
	}
	// A handover must still be possible: who holds the lock is only words.
	l, err := d.Lock(context.Background())
	if err != nil {
		return err
	}
	if err := l.Unlock(); err != nil {
		return err
	}
	left, err := os.ReadDir(d.Path())
	if err != nil || len(left) != 2 {
		return fmt.Errorf("left over: %v, %w", left, err)
	}
	return nil
}
