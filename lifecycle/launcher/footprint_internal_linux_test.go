package launcher

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestReleaseFile: pages that are the file's are unmapped and come back as they were; a mapping with
// a page of its own, as a breakpoint makes one, keeps it.
func TestReleaseFile(t *testing.T) {
	page := os.Getpagesize()
	path := filepath.Join(t.TempDir(), "some file") // a name with a space
	if err := os.WriteFile(path, bytes.Repeat([]byte("o"), 64*page), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mapped := func() []byte {
		t.Helper()
		m, err := unix.Mmap(int(f.Fd()), 0, 64*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Munmap(m) })
		return m
	}
	clean, broken, writable := mapped(), mapped(), mapped()
	broken[3*page], writable[3*page] = 'X', 'X'
	for _, m := range [][]byte{clean, broken} {
		if err := unix.Mprotect(m, unix.PROT_READ); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range [][]byte{clean, broken, writable} {
		if !bytes.Contains(m, []byte("o")) || resident(t, m) < 16 {
			t.Fatalf("%d pages mapped", resident(t, m))
		}
	}
	if err := releaseFile(path); err != nil {
		t.Fatal(err)
	}
	if n := resident(t, clean); n != 0 {
		t.Errorf("%d pages are mapped still", n)
	}
	for _, m := range [][]byte{broken, writable} {
		if m[3*page] != 'X' || resident(t, m) < 16 {
			t.Errorf("a page of its own is lost: %q, %d pages mapped", m[3*page], resident(t, m))
		}
	}
	if !bytes.Equal(clean, bytes.Repeat([]byte("o"), 64*page)) {
		t.Error("the pages did not come back as they were")
	}
}

// resident counts the mapping's pages that this process has, see "pagemap" in the kernel's
// documentation: bit 63 is "present".
func resident(t *testing.T, m []byte) (n int) {
	t.Helper()
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	entries := make([]byte, len(m)/os.Getpagesize()*8)
	if _, err := f.ReadAt(entries, int64(uintptr(unsafe.Pointer(&m[0])))/int64(os.Getpagesize())*8); err != nil {
		t.Fatal(err)
	}
	for i := 7; i < len(entries); i += 8 {
		n += int(entries[i] >> 7)
	}
	return n
}
