package intercept

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
)

// Mode is the way by which the launcher reaches the program's sockets.
type Mode int

const (
	// Auto takes Fetch where it works, and will when the program becomes another user. Else it takes Make,
	// if Options.Made is set and the program ends with the launcher (Options.ParentDeath, or the
	// launcher is PID 1). Else it takes Fetch as long as that works, or Start fails with ErrNoAccess.
	Auto Mode = iota
	// Fetch takes a copy of the socket at bind(2).
	Fetch
	// Make makes the program's TCP sockets at socket(2).
	Make
	// Off starts the program without any filter.
	Off
)

// String returns the mode's name in lower case.
func (m Mode) String() string {
	switch m {
	case Auto:
		return "auto"
	case Fetch:
		return "fetch"
	case Make:
		return "make"
	case Off:
		return "off"
	}
	return "Mode(" + strconv.Itoa(int(m)) + ")"
}

var (
	// ErrNested says that a filter with notifications is in force already:
	// that of an outer launcher, or of the container's runtime. A process can
	// have only one.
	ErrNested = errors.New("a seccomp filter with notifications is already in force, and there can be only one (is this inside another overlap run?)")
	// ErrNoFilter says that the kernel, or a container's profile, lets nobody
	// install the filter.
	ErrNoFilter = errors.New("no filter can be installed")
	// ErrNoAccess says that the launcher may not read the program's memory or
	// descriptors, and no other way was allowed. The text around it names what
	// was refused.
	ErrNoAccess = errors.New("no access to the program's sockets")
)

// Bind is a bind(2) that is about to happen.
type Bind struct {
	// PID is the process (the thread group), as the launcher sees it.
	PID int
	// FD is the socket's descriptor in the thread that binds it. By the time the program goes on it may
	// mean something else.
	FD int
	// Network is "tcp" or "udp".
	Network string
	// Addr is the address as the program gave it: a 4-in-6 address stays one,
	// a link-local address has its interface's index as the zone. The port is
	// never 0.
	Addr netip.AddrPort
	// Family is the socket's domain, AF_INET or AF_INET6.
	Family int
	// V6Only is the socket's IPV6_V6ONLY.
	V6Only bool
	// Device is the index of the network device that the socket is bound to
	// (SO_BINDTODEVICE), 0 for none.
	Device int
	// Shares is the socket's SO_REUSEPORT, as the program set it.
	Shares bool
	// Socket is a copy of the program's socket. It is closed when the callback
	// returns. Its file status flags are the program's own: do not change
	// O_NONBLOCK. In Make mode it is nil: see Borrow.
	Socket *os.File
	// Inode is the socket's inode number, as in sock_diag and /proc/net.
	Inode uint64
	// UID is the user that the socket belongs to, as the launcher sees it.
	UID int

	tap  *Tap
	lend lender // nil: there is nothing to be tried
}

// lender is where a copy of a socket comes from that has to be asked for.
type lender interface{ socket() (*os.File, error) }

// Borrow returns, during the callback, a copy of the program's socket, which is closed when the callback returns: Socket, or in
// Make mode one of UDP, which the thread that binds it gives then. It is stopped for that (ptrace(2)), makes a few
// system calls more, some 0.3 ms, and goes on when the callback has returned. The error says what was refused: by a profile, by a tracer that it has already, by Yama
// (kernel.yama.ptrace_scope at 2), or because it stepped down by itself. It wraps ErrNoAccess where there is
// nothing to be tried: with a TCP socket in Make mode, what was to be set was set in Options.Made.
func (b Bind) Borrow() (*os.File, error) {
	switch {
	case b.Socket != nil:
		return b.Socket, nil
	case b.lend != nil:
		return b.lend.socket()
	}
	return nil, ErrNoAccess
}

// Steered says, during the callback, that the launcher steers the group of a UDP socket. From now on the
// program can't take that away: when it attaches a program of its own to this socket, or detaches one
// (SO_ATTACH_REUSEPORT_CBPF, SO_ATTACH_REUSEPORT_EBPF, SO_DETACH_REUSEPORT_BPF), it is told that it
// worked and nothing happens. With a TCP socket it never does, before its bind neither.
func (b Bind) Steered() {
	if b.tap != nil {
		b.tap.steer(b.Inode)
	}
}

// Listen is a listen(2) of a program that waits for its answer.
type Listen struct {
	// PID is the process, and FD its descriptor.
	PID, FD int
	// Inode is the socket's inode number. In Make mode the socket may listen already, and be of any kind; 0 is one that
	// the launcher may not look at: see Made.
	Inode uint64
	// Socket is a copy of the program's socket, valid during the callback; nil in Make mode.
	Socket *os.File

	tap *Tap
}

// Made reports, during the callback, whether a socket is one of the newest of TCP that were made for the program, in Make
// mode. The launcher knows them whoever has them by now, and by whatever descriptor.
func (l Listen) Made(inode uint64) bool { return l.tap != nil && l.tap.gave(inode) }

// Options say what the launcher does at the program's calls. The zero value
// refuses MPTCP sockets and does nothing else.
type Options struct {
	// Mode is the way, Auto by default.
	Mode Mode
	// Bind is called before a bind(2) of a TCP or UDP socket to a port that is
	// not 0, from one goroutine at a time; the program waits for it. Of its
	// errors, one that wraps a syscall.Errno makes the program's bind fail with
	// it; others are logged, and the bind goes on. It must not call Close of
	// the Tap. It can be nil. In Make mode it is called only where the launcher
	// has access to the program's memory.
	Bind func(Bind) error
	// Listen is called before a listen(2) of a TCP socket, as Bind is. It can be nil. In Make mode it is called with what
	// the launcher may not look at too.
	Listen func(Listen) error
	// Missed is called with each bind that could not be looked at and went on
	// untouched, from the same goroutine as Bind. The error says why: it wraps
	// os.ErrPermission where the launcher may not look at the process. It can be nil.
	Missed func(error)
	// Made is called in Make mode with each TCP socket that was made, before the
	// program has it, from the same goroutine as Bind. socket is valid during
	// the call only. Its errors are treated as Bind's.
	Made func(socket *os.File, domain int) error
	// ParentDeath has the kernel kill the program (SIGKILL; not its children)
	// when the launcher dies: prctl(2), PR_SET_PDEATHSIG. It takes the launcher
	// a thread for as long as the program lives. A setuid program loses it.
	ParentDeath bool
	// Logger gets what could not be done, slog.Default() by default.
	Logger *slog.Logger
}

func (o Options) logger() *slog.Logger {
	if o.Logger != nil {
		return o.Logger
	}
	return slog.Default()
}
