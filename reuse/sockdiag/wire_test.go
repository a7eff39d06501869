package sockdiag

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

// message is a reply with one attribute of each kind that is read.
func message() []byte {
	b := make([]byte, inetReplyLen)
	b[0], b[1], b[2] = FamilyIPv6, StateListen, 0
	binary.BigEndian.PutUint16(b[4:], 8080)
	b[23] = 1 // ::1
	binary.NativeEndian.PutUint32(b[40:], 7)
	binary.NativeEndian.PutUint32(b[44:], 0x11)
	binary.NativeEndian.PutUint32(b[48:], 0x22)
	binary.NativeEndian.PutUint32(b[56:], 3)
	binary.NativeEndian.PutUint32(b[60:], 128)
	binary.NativeEndian.PutUint32(b[64:], 1000)
	binary.NativeEndian.PutUint32(b[68:], 4711)
	memory := make([]byte, 36)
	binary.NativeEndian.PutUint32(memory[32:], 9)
	b = appendAttribute(b, attrSKMemInfo, memory)
	return appendAttribute(b, attrSKV6Only, []byte{1})
}

func appendAttribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrHeaderLen+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func TestParseInet(t *testing.T) {
	got, err := parseInet(protocolTCP, message())
	if err != nil {
		t.Fatal(err)
	}
	want := Socket{
		Protocol: protocolTCP, Family: FamilyIPv6, State: StateListen,
		Local: netip.MustParseAddrPort("[::1]:8080"), Remote: netip.MustParseAddrPort("[::]:0"),
		Interface: 7, Inode: 4711, Cookie: 0x22_00000011, UID: 1000,
		RQueue: 3, WQueue: 128, Drops: 9, V6Only: true,
	}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// A reply that is cut off anywhere is an error or a shorter list of attributes,
// never a panic or a wrong number.
func TestParseInetCutOff(t *testing.T) {
	whole := message()
	for n := range whole {
		s, err := parseInet(protocolTCP, whole[:n])
		if n < inetReplyLen && err == nil {
			t.Errorf("%d bytes: no error", n)
		}
		if err == nil && (s.Inode != 4711 || s.Drops != 0 && s.Drops != 9) {
			t.Errorf("%d bytes: %+v", n, s)
		}
	}
}

func FuzzParseInet(f *testing.F) {
	f.Add(message())
	f.Add(message()[:inetReplyLen+5])
	f.Add([]byte{FamilyIPv4})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseInet(protocolUDP, b)
		if err != nil && s != (Socket{}) {
			t.Errorf("error %v with %+v", err, s)
		}
		if err == nil && (!s.Local.IsValid() || s.Protocol != protocolUDP) {
			t.Errorf("%+v", s)
		}
	})
}

func FuzzParseUnix(f *testing.F) {
	b := make([]byte, unixReplyLen)
	b[0], b[1], b[2] = FamilyUnix, 1, StateListen
	f.Add(b)
	b = appendAttribute(b, unixAttrName, []byte("/run/a.sock\x00"))
	b = appendAttribute(b, unixAttrVFS, make([]byte, 8))
	f.Add(appendAttribute(b, unixAttrRQLen, make([]byte, 8)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseUnix(b); err != nil && s != (UnixSocket{}) {
			t.Errorf("error %v with %+v", err, s)
		}
	})
}

func TestUnixName(t *testing.T) {
	for in, want := range map[string]string{
		"/run/a\x00": "/run/a", "/run/a": "/run/a", "\x00abc\x00": "\x00abc\x00", "": "",
	} {
		if got := unixName([]byte(in)); got != want {
			t.Errorf("unixName(%q) = %q, want %q", in, got, want)
		}
	}
}
