package launcher

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// becomeSmall gives the system back what a launcher does not need while it waits, which may be for
// days: the garbage of the handovers, and the pages of its own executable. Of those the kernel maps 16
// for each one that is used (fault_around_bytes in mm/memory.c), so that a few handovers bring in
// nearly all of them: 10.6 MB, when 1.7 MB serve a launcher at rest. They stay in the page cache, but are the
// first to go when memory is short; to have them mapped again takes the next handover less than 1 ms.
func becomeSmall(log *slog.Logger) {
	debug.FreeOSMemory()
	if err := releaseExecutable(); err != nil {
		log.Debug("the executable's pages stay mapped", "reason", err)
	}
}

var errRemote = errors.New("its file system is not known to be a local one")

// localFileSystems keep an executable that runs, whatever becomes of its name. Of a remote one it can go, and a
// page that is read again ends the process with SIGBUS then. Magic numbers of statfs(2).
var localFileSystems = []uint32{
	unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.OVERLAYFS_SUPER_MAGIC,
	unix.TMPFS_MAGIC, unix.SQUASHFS_MAGIC, unix.EROFS_SUPER_MAGIC_V1, zfsMagic, bcachefsMagic,
}

const (
	zfsMagic      = 0x2fc12fc1
	bcachefsMagic = 0xca451a4e
)

func releaseExecutable() error {
	const self = "/proc/self/exe"
	var fs unix.Statfs_t
	if err := unix.Statfs(self, &fs); err != nil {
		return fmt.Errorf("find the file system of %s: %w", self, err)
	}
	if !slices.Contains(localFileSystems, uint32(fs.Type)) {
		return errRemote
	}
	path, err := os.Readlink(self)
	if err != nil {
		return err
	}
	return releaseFile(path)
}

// releaseFile unmaps the pages of this process's read-only mappings of a file; what reads one gets it
// from the page cache again. A mapping with a page that is not the file's any more is left alone: a
// debugger or a uprobe has put its breakpoint there, which would be lost (MADV_DONTNEED in madvise(2)).
func releaseFile(path string) error {
	mappings, err := mappingsOf(path)
	if err != nil {
		return err
	}
	for _, m := range mappings {
		if m.writable || m.anonymous {
			continue
		}
		// unix.Madvise takes memory of Go's only.
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.length, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("unmap pages of %s: %w", path, errno)
		}
	}
	return nil
}

// mapping is a range of this process's memory that belongs to a file.
type mapping struct {
	start     uintptr
	length    uintptr
	writable  bool
	anonymous bool // it has pages of its own, in memory or swapped out
}

// mappingsOf reads /proc/self/smaps, see proc_pid_smaps(5).
func mappingsOf(path string) ([]mapping, error) {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []mapping
	ours := false
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) >= 5 && !strings.HasSuffix(fields[0], ":") {
			// START-END PERMISSIONS OFFSET DEVICE INODE PATH; a path may have spaces.
			_, name, _ := strings.Cut(lines.Text(), "/")
			if ours = "/"+name == path; !ours {
				continue
			}
			m, err := parseRange(fields[0])
			if err != nil {
				return nil, fmt.Errorf("read /proc/self/smaps: %w", err)
			}
			m.writable = strings.Contains(fields[1], "w")
			all = append(all, m)
			continue
		}
		if ours && len(fields) > 1 && (fields[0] == "Anonymous:" || fields[0] == "Swap:") && fields[1] != "0" {
			all[len(all)-1].anonymous = true
		}
	}
	return all, lines.Err()
}

func parseRange(s string) (m mapping, err error) {
	from, to, _ := strings.Cut(s, "-")
	start, err := strconv.ParseUint(from, 16, 64)
	if err != nil {
		return m, err
	}
	end, err := strconv.ParseUint(to, 16, 64)
	if err != nil {
		return m, err
	}
	return mapping{start: uintptr(start), length: uintptr(end - start)}, nil
}
