package bench

import (
	"sync"
	"time"
)

// sample is one request that ended. Times are nanoseconds since the run's base.
type sample struct {
	start      int64 // when it began; in an open loop, when it should have begun
	end        int64
	delayed    bool // by what the client itself saw, waiting for its turn excluded
	mode       Mode
	cause      Cause
	generation uint16
}

// client is one client of a run. It makes requests and notes how they ended; the
// tally takes the notes away a few times a second.
type client struct {
	*run
	index int
	mode  Mode
	timer *time.Timer

	lastName       string // of the generation that answered last
	lastGeneration uint16

	mu         sync.Mutex
	samples    []sample
	failures   []Failure
	idleClosed int64
}

func newClient(r *run, index int) *client {
	c := &client{run: r, index: index, mode: r.Mode}
	switch {
	case r.Network == "udp":
		c.mode = datagrams
	case r.Mode == Both:
		c.mode = [2]Mode{Close, KeepAlive}[index%2]
	}
	c.timer = time.NewTimer(time.Hour)
	c.timer.Stop()
	return c
}

// generationOf numbers a generation's name; most often it is the last one's.
func (c *client) generationOf(name []byte) uint16 {
	if c.lastName != string(name) {
		c.lastName = string(name)
		c.lastGeneration = c.generation(c.lastName)
	}
	return c.lastGeneration
}

// note books a request that ended with err. started is when this client began it,
// which in an open loop may be later than intended.
func (c *client) note(intended, started int64, generation uint16, err error) {
	s := sample{
		start:      intended,
		end:        c.now(),
		mode:       c.mode,
		cause:      causeOf(err),
		generation: generation,
	}
	s.delayed = s.end-started >= int64(DelayedAfter)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.samples = append(c.samples, s)
	if err != nil && len(c.failures) < maxFailures {
		c.failures = append(c.failures, Failure{
			At:     c.base.Add(time.Duration(s.end)),
			Offset: time.Duration(s.start),
			Took:   time.Duration(s.end - s.start),
			Cause:  s.cause,
			Mode:   s.mode,
			Error:  err.Error(),
		})
	}
}

// take hands over the notes and takes an empty slice to go on with.
func (c *client) take(empty []sample) (samples []sample, failures []Failure) {
	c.mu.Lock()
	defer c.mu.Unlock()
	samples, failures = c.samples, c.failures
	c.samples, c.failures = empty[:0], nil
	return samples, failures
}

// serve makes requests until the run stops.
func (c *client) serve() {
	if c.mode == datagrams {
		newUDPClient(c).loop()
	} else {
		newHTTPClient(c).loop()
	}
}
