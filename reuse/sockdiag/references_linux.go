package sockdiag

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
)

// referencesRead is how much of the table is read at once (bytes): hardly more than a line. The kernel
// shows listeners first, and each entry that it shows beyond the last of them costs a search
// through the table of connections, which is large and mostly empty.
const referencesRead = 256

// References returns what the kernel holds of TCP listeners of a family, by inode, from /proc/net/tcp
// and tcp6 (the kernel's proc_net_tcp.rst). Those that were not found are left out; absence says
// little, as in any dump. It sees the network namespace of the calling thread.
func References(family uint8, inodes []uint64) (map[uint64]Reference, error) {
	name := "/proc/thread-self/net/tcp"
	if family == FamilyIPv6 {
		name += "6"
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read the references of listeners: %w", err)
	}
	defer f.Close()
	found, err := scanReferences(f, inodes)
	if err != nil {
		return nil, fmt.Errorf("read the references of listeners: %s: %w", name, err)
	}
	return found, nil
}

// scanReferences reads no further than it must.
func scanReferences(r io.Reader, inodes []uint64) (map[uint64]Reference, error) {
	const (
		fieldState      = 3
		fieldQueues     = 4 // hexadecimal numbers with a colon between them
		fieldInode      = 9
		fieldReferences = 10
	)
	found := make(map[uint64]Reference, len(inodes))
	lines := bufio.NewReaderSize(r, referencesRead)
	for number := 0; len(found) < len(inodes); number++ {
		line, err := lines.ReadSlice('\n')
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if number == 0 {
			continue // the heading
		}
		fields := bytes.Fields(line)
		if len(fields) <= fieldReferences {
			return nil, fmt.Errorf("line %d has %d fields", number+1, len(fields))
		}
		if state, err := strconv.ParseUint(string(fields[fieldState]), 16, 8); err != nil {
			return nil, fmt.Errorf("line %d: %w", number+1, err)
		} else if uint8(state) != StateListen {
			break // the listeners come first
		}
		inode, err := strconv.ParseUint(string(fields[fieldInode]), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number+1, err)
		}
		if !slices.Contains(inodes, inode) {
			continue
		}
		count, err := strconv.Atoi(string(fields[fieldReferences]))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number+1, err)
		}
		_, queue, _ := bytes.Cut(fields[fieldQueues], []byte(":"))
		queued, err := strconv.ParseUint(string(queue), 16, 32)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number+1, err)
		}
		found[inode] = Reference{Count: count, Queued: int(queued)}
	}
	return found, nil
}
