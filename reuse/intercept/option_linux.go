package intercept

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// steeringOptions attach, or detach, the program that picks the socket of a reuseport group (socket(7),
// SO_ATTACH_REUSEPORT_CBPF): whoever came last has it, through any socket of the group.
var steeringOptions = []uint32{unix.SO_ATTACH_REUSEPORT_CBPF, unix.SO_ATTACH_REUSEPORT_EBPF, unix.SO_DETACH_REUSEPORT_BPF}

// deviceOptions bind a socket to a network device.
var deviceOptions = []uint32{unix.SO_BINDTODEVICE, unix.SO_BINDTOIFINDEX}

// settings are what decides about a socket's group at its bind and can't be read from outside: known, in
// Make mode, from the calls that set them.
type settings struct {
	v6only *bool // nil: as it was made
	device int
	shares bool // SO_REUSEPORT
}

// Bounds of what is remembered. A program binds a server's socket right after it has made it. The others
// that it sets IPV6_V6ONLY on are clients': Go and Java set it on each.
const (
	maxSet     = 1024
	maxSteered = 4096
	maxMade    = 4096
)

// recent remembers something of the newest sockets, by inode. It holds none of them open.
type recent[V any] struct {
	of    map[uint64]V
	order []uint64 // oldest first
}

func (r *recent[V]) put(ino uint64, v V, most int) {
	if r.of == nil {
		r.of = map[uint64]V{}
	}
	if _, known := r.of[ino]; !known {
		if len(r.order) >= most {
			delete(r.of, r.order[0])
			r.order = r.order[1:]
		}
		r.order = append(r.order, ino)
	}
	r.of[ino] = v
}

func (t *Tap) steer(ino uint64) { t.steered.put(ino, true, maxSteered) }

// option handles a setsockopt(2) that the filter lets nobody make unseen. done says that the program is to
// be told that it worked.
func (t *Tap) option(c call) (done bool) {
	tid, fd, name := int(c.n.TID), int(int32(c.n.Args[0])), int(int32(c.n.Args[2]))
	if tid == 0 || fd < 0 || t.o.Bind == nil {
		return false
	}
	var network string
	var st unix.Stat_t
	err := asUser(tid, func() (err error) {
		path := pathOf(tid, fd)
		if network, _, err = protocol(path); err == nil {
			err = os.NewSyscallError("stat", unix.Stat(path, &st))
		}
		return err
	})
	if err != nil {
		// What can't be looked at may still be seen in another way (see Listen.Made), but for attempts to steer.
		silent := errors.Is(err, unix.ENOENT) || t.mode == Make && errors.Is(err, os.ErrPermission) && !slices.Contains(steeringOptions, uint32(name))
		if !silent && c.valid() {
			t.log.Warn("cannot see the socket of a setsockopt; it goes on untouched", "tid", tid, "option", name, "error", err)
		}
		return false
	}
	level, ok := int(int32(c.n.Args[1])), false
	set := t.set.of[st.Ino]
	switch {
	case level == unix.IPPROTO_IPV6:
		var on bool
		on, ok = readSwitch(tid, c.n.Args[3], int(int32(c.n.Args[4])))
		set.v6only = &on
	case name == unix.SO_BINDTODEVICE || name == unix.SO_BINDTOIFINDEX:
		set.device, ok = readDevice(tid, name, c.n.Args[3], int(int32(c.n.Args[4])))
	case name == unix.SO_REUSEPORT:
		set.shares, ok = readSwitch(tid, c.n.Args[3], int(int32(c.n.Args[4])))
	default:
		return t.leftOut(network, st.Ino) && sameNetwork(tid) && c.valid()
	}
	if !ok || !c.valid() {
		return false
	}
	t.set.put(st.Ino, set, maxSet)
	// What was made for the program shares its port. It may say so, and must not undo it.
	return name == unix.SO_REUSEPORT && level == unix.SOL_SOCKET && network == "tcp" && !set.shares && sameNetwork(tid)
}

// leftOut reports whether a socket can't be steered by the program. One of TCP never can: a program that it gets
// before its bind keeps it out of a group that is there already (inet_bind_conflict in
// net/ipv4/inet_connection_sock.c, reuseport_cb_ok), and the launcher has a placeholder in each.
func (t *Tap) leftOut(network string, ino uint64) bool {
	if network != "tcp" && !t.steered.of[ino] {
		return false
	}
	t.left.Do(func() {
		t.log.Info("the program's own steering of its port (SO_ATTACH_REUSEPORT_CBPF, _EBPF) has no effect: the launcher steers it")
	})
	return true
}

// readSwitch reads what IPV6_V6ONLY is set to. ok is false where the kernel will refuse it
// (net/ipv6/ipv6_sockglue.c, do_ipv6_setsockopt).
func readSwitch(tid int, address uint64, length int) (on, ok bool) {
	var value [4]byte
	if length < len(value) {
		return false, false
	}
	if address == 0 {
		return false, true
	}
	err := readMemory(tid, address, value[:])
	return value != [4]byte{}, err == nil
}

// readDevice reads the index of the device that a socket is bound to, 0 for none.
func readDevice(tid, name int, address uint64, length int) (index int, ok bool) {
	if name == unix.SO_BINDTOIFINDEX {
		var value [4]byte
		if length < len(value) || readMemory(tid, address, value[:]) != nil {
			return 0, false
		}
		return int(int32(binary.NativeEndian.Uint32(value[:]))), true
	}
	// A name that is as long as it can be, or longer, is cut (net/core/sock.c, sock_setbindtodevice).
	value := make([]byte, max(0, min(length, unix.IFNAMSIZ-1)))
	if len(value) > 0 {
		if readMemory(tid, address, value) != nil {
			return 0, false
		}
		value, _, _ = bytes.Cut(value, []byte{0})
	}
	if len(value) == 0 {
		return 0, length >= 0
	}
	device, err := net.InterfaceByName(string(value))
	if err != nil {
		return 0, false // nor does the kernel know it
	}
	return device.Index, true
}

// madeV6Only is the IPV6_V6ONLY that a socket begins with (net.ipv6.bindv6only).
func madeV6Only() bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	on, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
	return err == nil && on == 1
}
