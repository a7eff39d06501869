package process

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// maxCommand bounds what Command reads, in bytes.
const maxCommand = 4096

// here returns the boot id and the inode of the caller's pid namespace. Neither can
// change while the process lives.
func here() (boot string, namespace uint64, err error) {
	p, err := place()
	return p.boot, p.namespace, err
}

type whereabouts struct {
	boot      string
	namespace uint64
}

var place = sync.OnceValues(func() (whereabouts, error) {
	// A /proc of another pid namespace would answer about other processes.
	if self, err := os.Readlink("/proc/self"); err != nil {
		return whereabouts{}, fmt.Errorf("read /proc: %w", err)
	} else if self != strconv.Itoa(os.Getpid()) {
		return whereabouts{}, fmt.Errorf("/proc is mounted for another pid namespace: it calls this process %s, not %d", self, os.Getpid())
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return whereabouts{}, fmt.Errorf("read the boot id: %w", err)
	}
	info, err := os.Stat("/proc/self/ns/pid")
	if err != nil {
		return whereabouts{}, fmt.Errorf("read the pid namespace: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return whereabouts{}, errors.New("read the pid namespace: it has no inode")
	}
	return whereabouts{boot: strings.TrimSpace(string(boot)), namespace: stat.Ino}, nil
})

// stat is the part of /proc/PID/stat (proc_pid_stat(5)) that is used here.
type stat struct {
	state   byte   // field 3
	parent  int    // field 4
	threads int    // field 20
	start   uint64 // field 22, clock ticks since boot
}

// zombie says whether nothing of the process runs any more. A process whose first
// thread has ended shows Z too, but its other threads still run.
func (s stat) zombie() bool {
	return (s.state == 'Z' && s.threads <= 1) || s.state == 'X' || s.state == 'x'
}

func readStat(pid int) (stat, error) {
	raw, err := readProc("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, os.ErrNotExist) {
		return stat{}, os.ErrProcessDone
	}
	if err != nil {
		return stat{}, err
	}
	return parseStat(raw)
}

// parseStat reads the fields after the name, which stands in brackets and may itself
// hold brackets, spaces and line ends.
func parseStat(raw []byte) (stat, error) {
	end := bytes.LastIndexByte(raw, ')')
	if end < 0 {
		return stat{}, errors.New("parse /proc/PID/stat: no name in brackets")
	}
	fields := strings.Fields(string(raw[end+1:]))
	const first = 3 // fields[0] is field 3 of the manual page
	if len(fields) <= 22-first || len(fields[0]) != 1 {
		return stat{}, errors.New("parse /proc/PID/stat: too few fields")
	}
	s := stat{state: fields[0][0]}
	var err error
	if s.parent, err = strconv.Atoi(fields[4-first]); err != nil {
		return stat{}, fmt.Errorf("parse /proc/PID/stat: parent: %w", err)
	}
	if s.threads, err = strconv.Atoi(fields[20-first]); err != nil {
		return stat{}, fmt.Errorf("parse /proc/PID/stat: threads: %w", err)
	}
	if s.start, err = strconv.ParseUint(fields[22-first], 10, 64); err != nil {
		return stat{}, fmt.Errorf("parse /proc/PID/stat: start time: %w", err)
	}
	return s, nil
}

func inspect(pid int) (start uint64, running bool, err error) {
	s, err := readStat(pid)
	if err != nil {
		return 0, false, err
	}
	return s.start, !s.zombie(), nil
}

// Command returns the command line of a process for people to read: arguments
// separated by spaces, what cannot be printed replaced by "?", at most 4096 bytes; a
// process without one (a kernel thread, a zombie) as its name in square brackets. It
// is empty when there is no such process.
func Command(pid int) string {
	line, err := readSome(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	line = bytes.TrimRight(line, "\x00")
	if len(line) == 0 {
		name, err := readSome(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil {
			return ""
		}
		return "[" + Printable(string(bytes.TrimSpace(name))) + "]"
	}
	return Printable(string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
}

func readSome(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxCommand))
}
