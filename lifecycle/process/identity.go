package process

import (
	"errors"
	"fmt"
	"os"
)

// ErrElsewhere says that an identity belongs to another boot or another pid
// namespace, so its number means nothing here.
var ErrElsewhere = errors.New("process belongs to another boot or pid namespace")

// Identity names one process for good. Two identities are the same process when
// they are equal with ==. The zero value is no process. It is a plain value, safe to
// copy, to compare, and to keep on disk.
type Identity struct {
	// PID is the process id as its own pid namespace counts.
	PID int `json:"pid"`
	// Start is when the process started. On Linux: clock ticks since boot, field 22
	// of /proc/PID/stat (proc_pid_stat(5)). Elsewhere: seconds since 1970.
	Start uint64 `json:"start"`
	// Boot names the boot of the kernel: /proc/sys/kernel/random/boot_id
	// (random(4)) on Linux; it may be empty elsewhere, where Start is absolute.
	Boot string `json:"boot,omitempty"`
	// Namespace is the inode of /proc/self/ns/pid (pid_namespaces(7)); 0 where
	// there are no pid namespaces.
	Namespace uint64 `json:"pid_namespace,omitempty"`
}

// Self returns the identity of the calling process.
func Self() (Identity, error) { return Of(os.Getpid()) }

// Of returns the identity of the process with that number in the caller's pid
// namespace. The error wraps os.ErrProcessDone when there is none. A zombie still has
// an identity; Alive says what it is.
func Of(pid int) (Identity, error) {
	id, _, err := look(pid)
	return id, err
}

// look is Of, and says also whether the process still runs: a zombie does not.
func look(pid int) (id Identity, running bool, err error) {
	if pid <= 0 {
		return Identity{}, false, fmt.Errorf("look up process %d: %w", pid, os.ErrProcessDone)
	}
	boot, namespace, err := here()
	if err != nil {
		return Identity{}, false, fmt.Errorf("look up process %d: %w", pid, err)
	}
	start, running, err := inspect(pid)
	if err != nil {
		return Identity{}, false, fmt.Errorf("look up process %d: %w", pid, err)
	}
	return Identity{PID: pid, Start: start, Boot: boot, Namespace: namespace}, running, nil
}

// Here says whether the identity was taken in this boot and this pid namespace, so
// that its number can be looked up. Where the kernel does not tell, it is false.
func (id Identity) Here() bool {
	boot, namespace, err := here()
	return err == nil && id.PID > 0 && id.Boot == boot && id.Namespace == namespace
}

// Alive says whether the process still runs: Here, a process of its number has its
// start time, and it is not a zombie. False for a process of another pid namespace
// means "not known to live", and needs another proof.
func (id Identity) Alive() bool {
	if !id.Here() {
		return false
	}
	now, running, err := look(id.PID)
	return err == nil && running && now == id
}
