// Package intercept starts a program so that its launcher sees every bind(2) of
// a TCP or UDP socket before it happens, and holds the very socket while it
// looks. That is how a program that never asked for SO_REUSEPORT comes to share
// its port: the launcher sets the option on the socket, then lets the bind go on.
//
// The invariant: the program is unchanged. It makes the same system calls with
// the same arguments on its own sockets and gets the same answers; what the
// launcher holds is a copy of a descriptor for the length of one call, closed
// before the program goes on. Three answers differ, and only these: a socket of
// IPPROTO_MPTCP is refused with EPROTONOSUPPORT (steering cannot be attached to
// one, and programs that ask for it fall back to TCP), a bind that
// [Options.Bind] refuses fails with the error it names, and a program that would
// steer a TCP port by itself (SO_ATTACH_REUSEPORT_CBPF, SO_ATTACH_REUSEPORT_EBPF), or
// a UDP port of which [Bind.Steered] spoke, is told that it does, and nothing happens:
// a group has one steering program, and the last one to come has it.
//
// # How
//
// Each program is started from a thread of the launcher's that is made for it, and
// ends with the start. That thread installs a seccomp filter on itself, which turns
// bind(2) and listen(2) into notifications (seccomp_unotify(2)), and starts the program, which
// inherits the filter. So the filter is there before the program's first
// instruction, works for static binaries, is inherited by all its threads and
// children, and costs no process between the launcher and the program. There are
// two ways to reach a socket:
//
//   - [Fetch]: at bind(2) the launcher takes a copy with pidfd_getfd(2). It needs
//     ptrace access to the program: the same user with no more capabilities and
//     a Yama setting below 2, or CAP_SYS_PTRACE; and a container's seccomp profile
//     must let pidfd_getfd through (Docker's does with --cap-add SYS_PTRACE).
//   - [Make]: at socket(2) of TCP the launcher makes the socket itself and puts it into
//     the program. It needs no access at all, but a wake-up of the launcher for each
//     IPv4 and IPv6 socket of TCP (5 to 30 µs), those of outgoing connections included,
//     and the socket belongs to the launcher's user. What is bound is seen at bind(2), where the
//     launcher may read the program's memory and /proc/PID/fd, which Docker's profile allows;
//     both are looked at as the program's user where that is another one's.
//     What decides about its group and can't be seen from outside, IPV6_V6ONLY,
//     SO_BINDTODEVICE and SO_REUSEPORT, is read when the program sets it: one more wake-up for each
//     IPv6 socket of programs that set the former on each (Go's and Java's do).
//     A UDP socket, on which the option must not be set but for some ports (programs that pick
//     random source ports rely on EADDRINUSE), stays the program's own. At the bind of such a port the thread that
//     binds is stopped with ptrace(2), which Docker's profile allows, and gives a copy by
//     its own hand ([Bind.Borrow]): the same way as with Fetch from there on.
//
// # Limits
//
//   - This is no security boundary. The address is read from the program's
//     memory, and the kernel reads it once more after the launcher's answer; a
//     program that wants to can change it in between (seccomp_unotify(2), NOTES).
//     Calls of another architecture (i386 and x32 on x86-64, 32-bit Arm on arm64)
//     are let through untouched, and so are io_uring's bind, listen and setsockopt.
//   - When the launcher dies, or closes its [Tap], each later intercepted call of
//     the program fails with ENOSYS. With Fetch these are its later binds and listens, and
//     attempts to steer; with Make all its later TCP sockets. Make is therefore chosen by itself
//     only where the program ends with the launcher.
//   - A process has at most one filter with notifications. Where one is in force
//     already, Start returns [ErrNested].
//   - Without CAP_SYS_ADMIN a filter needs no_new_privs, which takes setuid bits
//     and file capabilities from what the program executes: [Tap.NoNewPrivs].
//   - A process of the program that is not dumpable (prctl(2), PR_SET_DUMPABLE:
//     its file cannot be read, or it changed its user) and a launcher without
//     CAP_SYS_PTRACE: its binds go on untouched, with a warning in the log. In Make
//     mode its TCP sockets are known when they listen ([Listen.Made]). The
//     same under Yama's setting 1 for one that is no descendant of the launcher
//     any more; a launcher that is a subreaper keeps them.
//   - A thread that gives a socket is traced until Options.Bind returns. Who waits for the program as its child is to look at what
//     it is told ([AwaitEnd]); other children's end is told as always.
//     A process of the program's that is about to give one when the launcher dies is killed (PTRACE_O_EXITKILL).
//     What it does for that, mmap(2), sendmsg(2), munmap(2) and close(2), passes the program's own seccomp filters, where it
//     has put them on before it binds: one that refuses such a call keeps the port from being shared, and one that kills for it kills.
//   - The call waits for the launcher. One that is stopped (SIGSTOP) holds up the
//     program's binds, and with Make its sockets, until it goes on.
//
// Kernels: Fetch needs Linux 5.6 (pidfd_getfd), Make 5.9 (ADDFD), [Tap.Done] 5.9
// (before, it is closed by Close only). Below 5.19 (WAIT_KILLABLE_RECV) a signal
// during a bind makes the kernel start the call, and so the notification, anew:
// Options.Bind can then be called twice for one bind. x86-64 and arm64 were
// designed for; riscv64 has the same calls. Elsewhere only [Off] works.
package intercept
