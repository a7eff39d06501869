package bench

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	sequenceSize = 8     // of the sequence number before a datagram's body
	maxDatagram  = 65507 // what UDP over IPv4 holds
)

// receiveBuffer is asked for each client's socket, in bytes; the system may give less. In
// an open loop, one client may send all that is late after a stall: the 250 echoes that
// the default of 208 KiB holds were not enough on a busy machine.
const receiveBuffer = 4 << 20

// generationLine begins what a server may put behind an echo, to name its generation as
// the header does in HTTP. The name goes to the end of the datagram, or of the line.
const generationLine = "\n" + GenerationHeader + ": "

// sweepEvery is how often datagrams without an echo are looked for; so much longer
// than Load.Timeout a lost one may wait to be booked.
const sweepEvery = 20 * time.Millisecond

// udpClient sends numbered datagrams from one socket and books each one by its
// echo, in whatever order they come. One goroutine sends and one receives; a datagram
// is booked by whoever takes it out of waiting. A late echo and a second one find
// nothing there and are ignored.
type udpClient struct {
	*client
	conn   net.Conn
	packet []byte
	booked chan bool // closed loop: the datagram under way was booked; true: as failed

	mu      sync.Mutex
	waiting map[uint64]sent // by sequence number
	last    uint64          // sequence number given out
}

type sent struct{ intended, started int64 }

var errLost = fmt.Errorf("no echo: %w", os.ErrDeadlineExceeded)

func newUDPClient(c *client) *udpClient {
	return &udpClient{
		client:  c,
		packet:  append(make([]byte, sequenceSize), c.Body...),
		booked:  make(chan bool, 1),
		waiting: make(map[uint64]sent),
	}
}

func (u *udpClient) loop() {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(u.run.target))
	if err != nil {
		// No datagram exists yet that could be booked as failed.
		u.stop(fmt.Errorf("%w: %w", ErrGenerator, err))
		return
	}
	conn.SetReadBuffer(receiveBuffer)
	u.conn = conn
	defer conn.Close()
	finished, received := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(received)
		u.receive(finished)
	}()
	for {
		intended, ok := u.next(u.timer)
		if !ok {
			break
		}
		u.send(intended)
		if u.Rate > 0 {
			continue
		}
		wait := u.Think
		if failed := <-u.booked; failed {
			wait = max(wait, failurePause)
		}
		if !u.pause(u.timer, wait) {
			break
		}
	}
	close(finished)
	<-received
}

// send sends the next datagram.
func (u *udpClient) send(intended int64) {
	u.mu.Lock()
	u.last++
	sequence := u.last
	u.waiting[sequence] = sent{intended, u.now()}
	u.mu.Unlock()
	binary.BigEndian.PutUint64(u.packet, sequence)
	_, err := u.conn.Write(u.packet)
	if errors.Is(err, syscall.ECONNREFUSED) {
		// The error is of a datagram before this one (ip(7)), which was not sent.
		u.bookOldest(sequence, err)
		_, err = u.conn.Write(u.packet)
	}
	if err != nil {
		u.book(sequence, 0, fmt.Errorf("send datagram: %w", err))
	}
}

// receive books echoes, and what had none in time, until finished is closed and
// nothing is waited for.
func (u *udpClient) receive(finished <-chan struct{}) {
	buf := make([]byte, maxDatagram+1)
	swept := time.Now()
	for {
		select {
		case <-finished:
			if u.underWay() == 0 {
				return
			}
		default:
		}
		now := time.Now()
		if now.Sub(swept) >= sweepEvery {
			u.bookLost()
			swept = now
		}
		u.conn.SetReadDeadline(now.Add(sweepEvery))
		n, err := u.conn.Read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
		case err != nil:
			u.bookOldest(0, fmt.Errorf("receive echo: %w", err))
		case n < sequenceSize:
			// Whose it is can't be seen in it, so it is taken for that of the one that waits longest.
			u.bookOldest(0, &failure{Body, fmt.Errorf("echo of %d bytes is too short for its number", n)})
		default:
			generation, err := u.check(buf[sequenceSize:n])
			u.book(binary.BigEndian.Uint64(buf), generation, err)
		}
	}
}

// check looks at what came behind a sequence number.
func (u *udpClient) check(echo []byte) (generation uint16, err error) {
	rest, ok := bytes.CutPrefix(echo, u.Body)
	if name, named := bytes.CutPrefix(rest, []byte(generationLine)); ok && named {
		return u.generationOf(bytes.TrimSpace(name)), nil
	}
	if !ok || len(rest) > 0 {
		return 0, &failure{Body, fmt.Errorf("echo of %d bytes is not what was sent", sequenceSize+len(echo))}
	}
	return 0, nil
}

func (u *udpClient) underWay() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.waiting)
}

// book takes a datagram out of waiting and notes how it ended.
func (u *udpClient) book(sequence uint64, generation uint16, err error) {
	u.mu.Lock()
	s, ok := u.waiting[sequence]
	delete(u.waiting, sequence)
	u.mu.Unlock()
	if !ok {
		return
	}
	u.note(s.intended, s.started, generation, err)
	if u.Rate == 0 {
		u.booked <- err != nil
	}
}

// bookOldest books the datagram that waits longest, other than except.
func (u *udpClient) bookOldest(except uint64, err error) {
	oldest := uint64(0)
	u.mu.Lock()
	for sequence := range u.waiting {
		if sequence != except && (oldest == 0 || sequence < oldest) {
			oldest = sequence
		}
	}
	u.mu.Unlock()
	u.book(oldest, 0, err)
}

// bookLost books as lost what has waited for Timeout.
func (u *udpClient) bookLost() {
	var lost []uint64
	before := u.now() - int64(u.Timeout)
	u.mu.Lock()
	for sequence, s := range u.waiting {
		if s.started < before {
			lost = append(lost, sequence)
		}
	}
	u.mu.Unlock()
	for _, sequence := range lost {
		u.book(sequence, 0, errLost)
	}
}
