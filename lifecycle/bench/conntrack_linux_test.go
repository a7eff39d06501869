package bench

import (
	"strings"
	"testing"
)

func TestConntrackDrops(t *testing.T) {
	const table = `entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error
0003ffff  00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 000012a3 0000001e 00000000
0003ffff  00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000c10 00000022 00000000
`
	if n := parseConntrackDrops([]byte(table)); n != 0x12a3+0xc10 {
		t.Errorf("%d dropped, want %d", n, 0x12a3+0xc10)
	}
	for _, odd := range []string{"", "\n", "drop\n\nx\n", "entries\n1\n"} {
		if n := parseConntrackDrops([]byte(odd)); n != 0 {
			t.Errorf("%q: %d dropped", odd, n)
		}
	}
	r := Result{ConntrackDrops: 1234}
	if table := r.Table(); !strings.Contains(table, "own drops  1,234  packets that this machine's connection tracking dropped") {
		t.Errorf("not said in the table:\n%s", table)
	}
}
