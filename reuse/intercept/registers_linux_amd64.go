package intercept

import "golang.org/x/sys/unix"

// callInstruction is syscall.
const callInstruction = "\x0f\x05"

// rewind has the registers of a thread that has stopped at the end of a call that is to start anew be those before the
// call; false where they are none of such a thread. The kernel does it when the thread goes on (arch_do_signal_or_restart in
// arch/x86/kernel/signal.c), and is kept from doing it to another call by Orig_rax.
func rewind(r *unix.PtraceRegs, n notification) bool {
	switch int64(r.Rax) {
	case -512, -513: // ERESTARTSYS, ERESTARTNOINTR
	default:
		return false
	}
	if r.Orig_rax != uint64(n.Number) {
		return false
	}
	r.Rip -= uint64(len(callInstruction))
	r.Rax, r.Orig_rax = uint64(n.Number), ^uint64(0)
	return true
}

// prepare has them make a call.
func prepare(r *unix.PtraceRegs, number uintptr, args []uintptr) {
	r.Rax = uint64(number)
	for i, to := range []*uint64{&r.Rdi, &r.Rsi, &r.Rdx, &r.R10, &r.R8, &r.R9} {
		if i < len(args) {
			*to = uint64(args[i])
		}
	}
}

// returned is what the call returned.
func returned(r *unix.PtraceRegs) int64 { return int64(r.Rax) }
