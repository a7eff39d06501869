package reuse

import (
	"net/netip"
	"testing"
)

func TestStrangerOverlaps(t *testing.T) {
	type address struct {
		addr   string
		v6only bool
	}
	const port = 8080
	for _, tt := range []struct {
		a, b           address
		equal, overlap bool
	}{
		{address{"0.0.0.0", false}, address{"0.0.0.0", false}, true, true},
		{address{"127.0.0.1", false}, address{"127.0.0.1", false}, true, true},
		{address{"127.0.0.1", false}, address{"127.0.0.2", false}, false, false},
		{address{"127.0.0.1", false}, address{"0.0.0.0", false}, false, true},
		{address{"::", false}, address{"::", false}, true, true},
		{address{"::", false}, address{"::", true}, false, true},
		{address{"::", true}, address{"::", true}, true, true},
		{address{"::", false}, address{"0.0.0.0", false}, false, true},
		{address{"::", true}, address{"0.0.0.0", false}, false, false},
		{address{"::", false}, address{"127.0.0.1", false}, false, true},
		{address{"::", true}, address{"127.0.0.1", false}, false, false},
		{address{"::", true}, address{"::1", true}, false, true},
		{address{"::", false}, address{"::1", true}, false, true},
		{address{"::1", true}, address{"::1", true}, true, true},
		{address{"::1", true}, address{"::1", false}, false, true},
		{address{"::1", true}, address{"127.0.0.1", false}, false, false},
		{address{"::1", true}, address{"0.0.0.0", false}, false, false},
		{address{"::ffff:127.0.0.1", false}, address{"127.0.0.1", false}, false, true},
		{address{"::ffff:127.0.0.1", false}, address{"::", true}, false, false},
		{address{"::ffff:127.0.0.1", false}, address{"::", false}, false, true},
		{address{"::ffff:0.0.0.0", false}, address{"127.0.0.1", false}, false, true},
		{address{"::ffff:0.0.0.0", false}, address{"::1", false}, false, false},
		{address{"fe80::1%a", true}, address{"fe80::1%a", true}, true, true},
		{address{"fe80::1%a", true}, address{"fe80::1%b", true}, false, false},
		{address{"fe80::1%a", true}, address{"fe80::1", true}, false, true},
		{address{"fe80::1%a", true}, address{"::", true}, false, true},
		{address{"", false}, address{"::", false}, true, true},
		{address{"", false}, address{"10.0.0.1", false}, false, true},
		{address{"0.0.0.0", true}, address{"0.0.0.0", false}, true, true},
	} {
		of := func(a address, port uint16) netip.AddrPort {
			if a.addr == "" {
				return netip.AddrPortFrom(netip.Addr{}, port)
			}
			return netip.AddrPortFrom(netip.MustParseAddr(a.addr), port)
		}
		for range 2 { // whichever comes first
			equal, overlap := Overlaps(of(tt.a, port), of(tt.b, port), tt.a.v6only, tt.b.v6only)
			if equal != tt.equal || overlap != tt.overlap {
				t.Errorf("Overlaps(%v, %v) = %v, %v, want %v, %v", tt.a, tt.b, equal, overlap, tt.equal, tt.overlap)
			}
			if equal, overlap := Overlaps(of(tt.a, port), of(tt.b, port+1), tt.a.v6only, tt.b.v6only); equal || overlap {
				t.Errorf("%v and %v overlap on different ports", tt.a, tt.b)
			}
			if equal, overlap := Overlaps(of(tt.a, 0), of(tt.b, 0), tt.a.v6only, tt.b.v6only); equal || overlap {
				t.Errorf("%v and %v overlap on port 0", tt.a, tt.b)
			}
			tt.a, tt.b = tt.b, tt.a
		}
	}
}

func TestStrangerString(t *testing.T) {
	for want, s := range map[string]Stranger{
		"nginx (pid 12)":                {PID: 12, Command: "nginx"},
		"pid 12":                        {PID: 12},
		"a process that cannot be seen": {Inode: 4},
	} {
		if got := s.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
