package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
)

// users returns the real and the saved user id of a process, as proc_pid_status(5) has them. The owner of
// /proc/PID would be the effective one, and root for a process that cannot be dumped.
func users(pid int) (real, saved int, err error) {
	status, err := readProc("/proc/" + strconv.Itoa(pid) + "/status")
	if errors.Is(err, os.ErrNotExist) {
		return 0, 0, os.ErrProcessDone
	}
	if err != nil {
		return 0, 0, err
	}
	// The name, which is the process's own choice, stands before it, with its line ends escaped.
	_, line, found := bytes.Cut(status, []byte("\nUid:"))
	if !found {
		return 0, 0, errors.New("parse /proc/PID/status: no Uid")
	}
	var effective int
	if _, err := fmt.Sscan(string(line), &real, &effective, &saved); err != nil {
		return 0, 0, fmt.Errorf("parse /proc/PID/status: Uid: %w", err)
	}
	return real, saved, nil
}
