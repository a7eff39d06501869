package sockdiag

import (
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"
)

const tcpTable = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode                                                     
   0: 00000000:07E8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1176 1 000000000c92ae2d 100 0 0 10 0                      
   1: 0100007F:B341 00000000:0000 0A 00000000:00000003 00:00000000 00000000  1000        0 3745956 4 00000000dea3083a 100 0 0 10 0                   
   2: 0100007F:B341 0100007F:C341 01 00000000:00000000 00:00000000 00000000  1000        0 77 2 00000000dea30000 20 4 30 10 -1                       
`

// TestScanReferences: whatever the pieces that the table comes in.
func TestScanReferences(t *testing.T) {
	for name, r := range map[string]io.Reader{
		"whole":  strings.NewReader(tcpTable),
		"byte":   iotest.OneByteReader(strings.NewReader(tcpTable)),
		"halves": iotest.HalfReader(strings.NewReader(tcpTable)),
	} {
		got, err := scanReferences(r, []uint64{3745956, 1176, 77, 5})
		if err != nil || len(got) != 2 || got[1176] != (Reference{Count: 1}) || got[3745956] != (Reference{Count: 4, Queued: 3}) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := scanReferences(strings.NewReader("heading\n  0: 0 0 0A 0\n"), []uint64{1}); err == nil {
		t.Error("a line that is cut off was accepted")
	}
	if got, err := scanReferences(iotest.TimeoutReader(strings.NewReader(tcpTable)), []uint64{5}); err == nil {
		t.Errorf("an error became %v", got)
	}
}

// TestScanReferencesStops: what comes behind the last inode is not read.
func TestScanReferencesStops(t *testing.T) {
	heading, rest, _ := strings.Cut(tcpTable, "\n")
	first, _, _ := strings.Cut(rest, "\n")
	r := io.MultiReader(strings.NewReader(heading+"\n"+first+"\n"), iotest.ErrReader(io.ErrUnexpectedEOF))
	if got, err := scanReferences(r, []uint64{1176}); err != nil || got[1176].Count != 1 {
		t.Error(got, err)
	}
}

func FuzzScanReferences(f *testing.F) {
	f.Add(tcpTable)
	f.Fuzz(func(t *testing.T, table string) {
		got, err := scanReferences(strings.NewReader(table), []uint64{1176, 77})
		if err == nil && len(got) > 2 {
			t.Errorf("%v", got)
		}
	})
}

// TestReferences: each connection that waits has one, of whatever family it is.
func TestReferences(t *testing.T) {
	for _, tt := range []struct {
		network, address, dialed string
		family                   uint8
	}{
		{"tcp4", "127.0.0.1:0", "127.0.0.1", FamilyIPv4},
		{"tcp6", "[::1]:0", "::1", FamilyIPv6},
		{"tcp", ":0", "127.0.0.1", FamilyIPv6},
	} {
		var config net.ListenConfig
		config.SetMultipathTCP(false)
		ln, err := config.Listen(t.Context(), tt.network, tt.address)
		if err != nil && tt.family == FamilyIPv6 {
			continue // no IPv6 here
		}
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		inode := inodeOf(t, ln.(syscall.Conn))
		expect := func(want int) {
			t.Helper()
			var got map[uint64]Reference
			for range 1000 {
				if got, err = References(tt.family, []uint64{inode}); err != nil {
					t.Fatal(err)
				}
				if got[inode] == (Reference{Count: want, Queued: want - 1}) {
					return
				}
				time.Sleep(time.Millisecond)
			}
			t.Fatalf("%s %s: %v, want %d", tt.network, tt.address, got, want)
		}
		expect(1)
		_, port, _ := net.SplitHostPort(ln.Addr().String())
		for n := range 3 {
			c, err := net.Dial("tcp", net.JoinHostPort(tt.dialed, port))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			expect(2 + n)
		}
		for n := range 3 {
			c, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			expect(3 - n)
		}
	}
}
