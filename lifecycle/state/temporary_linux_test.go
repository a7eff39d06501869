package state

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMkdirTemp(t *testing.T) {
	const memory = "/dev/shm"
	disk := t.TempDir()
	t.Setenv("TMPDIR", disk)
	oldRoot, oldShared := systemRoot, sharedMem
	t.Cleanup(func() { systemRoot, sharedMem = oldRoot, oldShared })
	made := func(runtime string) string {
		t.Helper()
		t.Setenv("XDG_RUNTIME_DIR", runtime)
		dir, err := MkdirTemp("overlap-test-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != directoryMode() {
			t.Errorf("%v, %v", info.Mode(), err)
		}
		return filepath.Dir(dir)
	}

	systemRoot, sharedMem = filepath.Join(disk, "run", "overlap"), filepath.Join(disk, "shm")
	for _, runtime := range []string{"", "relative", "/proc/self", filepath.Join(disk, "missing")} {
		if got := made(runtime); got != disk {
			t.Errorf("nothing in memory, XDG_RUNTIME_DIR=%q: made in %s", runtime, got)
		}
	}
	if !inMemory(memory) {
		if os.Getenv("OVERLAP_TEST_REQUIRE") == "1" {
			t.Fatal(memory + " is not in memory")
		}
		t.Skip(memory + " is not in memory: mount -t tmpfs tmpfs /dev/shm")
	}
	if got := made(memory); got != memory {
		t.Errorf("XDG_RUNTIME_DIR=%s: made in %s", memory, got)
	}
	sharedMem = memory
	if got := made(""); got != memory {
		t.Errorf("made in %s, want %s", got, memory)
	}
}
