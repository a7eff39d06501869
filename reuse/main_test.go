package reuse

import (
	"flag"
	"testing"

	"go.uber.org/goleak"

	"overlap/test/netns"
)

var seed = flag.Uint64("seed", 0, "seed of the random sequences; 0 takes a new one")

func TestMain(m *testing.M) {
	netns.Enter()
	flag.Parse()
	goleak.VerifyTestMain(m)
}

var launchedRounds = flag.Int("launched", 60, "rounds")
