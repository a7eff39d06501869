package intercept

import (
	"os/exec"
	"runtime"
	"sync"
)

var starting sync.Mutex

// StartCommand is cmd.Start for a process of one processor (GOMAXPROCS): it has two while the command starts.
// The thread that starts it keeps its processor until execve(2) has found and read the program, as
// syscall's forkExec waits in vfork(2) without the runtime's knowledge; on a network file system, or
// one that fetches what is asked for, that is as long as it likes, and all other goroutines would
// wait. Calls at the same time are made one after the other.
func StartCommand(cmd *exec.Cmd) error {
	starting.Lock()
	defer starting.Unlock()
	if runtime.GOMAXPROCS(0) == 1 {
		runtime.GOMAXPROCS(2)
		defer runtime.GOMAXPROCS(1)
	}
	return cmd.Start()
}
