package state

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// What systemd-tmpfiles holds for old it removes, but not from under a generation that lives.
func TestTmpfiles(t *testing.T) {
	tmpfiles, err := exec.LookPath("systemd-tmpfiles")
	if err != nil {
		t.Skip("needs systemd-tmpfiles: apt-get install systemd") // TestDirectoryIsKeptWhileOwned is without
	}
	d := openService(t)
	if err := d.Write(record(1)); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "tmpfiles.conf")
	if err := os.WriteFile(config, []byte("e "+filepath.Dir(d.Path())+" - - - 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	clean := func() {
		if out, err := exec.Command(tmpfiles, "--clean", config).CombinedOutput(); err != nil {
			t.Skipf("systemd-tmpfiles does not work here: %v: %s", err, out)
		}
	}
	lock, err := d.Own(1)
	if err != nil {
		t.Fatal(err)
	}
	clean()
	if !d.Owned(1) {
		t.Error("the lock of who lives was removed")
	}
	if _, err := d.Read(1); err != nil {
		t.Error(err)
	}
	if err := lock.Unlock(); err != nil {
		t.Error(err)
	}
	clean()
	if _, err := os.Stat(filepath.Join(d.Path(), "1.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want %v: the test sees no cleaning", err, fs.ErrNotExist)
	}
}
