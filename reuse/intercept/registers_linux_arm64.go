package intercept

import "golang.org/x/sys/unix"

// callInstruction is svc #0.
const callInstruction = "\x01\x00\x00\xd4"

// rewind says whether the registers are those of a thread before its call: the kernel has put them back when it stops at
// the end of a call that is to start anew (do_signal in arch/arm64/kernel/signal.c).
func rewind(r *unix.PtraceRegs, n notification) bool {
	return r.Regs[8] == uint64(n.Number) && r.Regs[0] == n.Args[0] && r.Regs[1] == n.Args[1]
}

// prepare has them make a call. BTYPE is not 0 before a signal's handler, where the call is not: only what marks the target of a branch
// may be there then.
func prepare(r *unix.PtraceRegs, number uintptr, args []uintptr) {
	const btype = 3 << 10 // PSR_BTYPE_SHIFT of arch/arm64/include/uapi/asm/ptrace.h
	r.Pstate &^= btype
	r.Regs[8] = uint64(number)
	for i, v := range args {
		r.Regs[i] = uint64(v)
	}
}

// returned is what the call returned.
func returned(r *unix.PtraceRegs) int64 { return int64(r.Regs[0]) }
