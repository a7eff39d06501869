package reuse

import (
	"context"
	"testing"
)

// TestWildcard: [::] is all addresses of the machine, as an empty host is, and not IPv4's alone.
func TestWildcard(t *testing.T) {
	if !hasIPv6() {
		t.Skip("no IPv6 here")
	}
	for _, tt := range []struct {
		network, addr, want string
		v6only              bool
	}{
		{"tcp", ":80", "[::]:80", false},
		{"tcp", "[::]:80", "[::]:80", false},
		{"udp", "[::]:80", "[::]:80", false},
		{"tcp6", "[::]:80", "[::]:80", true},
		{"tcp6", ":80", "[::]:80", true},
		{"tcp4", ":80", "0.0.0.0:80", false},
		{"tcp", "0.0.0.0:80", "0.0.0.0:80", false},
		{"tcp", "[::1]:80", "[::1]:80", true},
	} {
		a, err := ParseAddress(context.Background(), tt.network, tt.addr)
		if err != nil || a.String() != tt.want || a.V6Only != tt.v6only {
			t.Errorf("%s %s is %v, IPv6 only %t (%v)", tt.network, tt.addr, a, a.V6Only, err)
		}
	}
}
