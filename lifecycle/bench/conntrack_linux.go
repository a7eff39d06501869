package bench

import (
	"bytes"
	"os"
	"slices"
	"strconv"
)

// conntrackDrops returns how many packets the kernel has dropped so far in this network
// namespace because its table of tracked connections was full. Where any NAT or
// stateful rule is loaded (Docker's are enough), each connection stays in that table
// for two minutes after its end, so a fast load with a connection for each request
// fills it; SYNs are then dropped before they leave the client.
func conntrackDrops() int64 {
	table, err := os.ReadFile("/proc/net/stat/nf_conntrack")
	if err != nil {
		return 0 // connections are not tracked
	}
	return parseConntrackDrops(table)
}

// parseConntrackDrops sums the column "drop" over the lines, one a CPU, all in hex.
func parseConntrackDrops(table []byte) int64 {
	column, sum := -1, int64(0)
	for i, line := range bytes.Split(table, []byte("\n")) {
		fields := bytes.Fields(line)
		if i == 0 {
			column = slices.IndexFunc(fields, func(f []byte) bool { return string(f) == "drop" })
		} else if column >= 0 && column < len(fields) {
			n, _ := strconv.ParseInt(string(fields[column]), 16, 64)
			sum += n
		}
	}
	return sum
}
