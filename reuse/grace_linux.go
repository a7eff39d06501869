package reuse

import "golang.org/x/sys/unix"

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL of linux/membarrier.h, which was called SHARED before.
const membarrierGlobal = 1

// barrier waits for an RCU grace period of the kernel, inside of which each packet is received
// (synchronize_rcu in membarrier(2)'s kernel/sched/membarrier.c, since Linux 4.3). It needs no
// privilege, and fails on kernels with nohz_full.
func barrier() error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}
