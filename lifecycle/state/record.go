package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"overlap/lifecycle/process"
)

// Schema is the version of the record that this package writes and reads.
const Schema = 1

// maxRecord bounds a record's file, in bytes.
const maxRecord = 1 << 20

// ErrRecord says that a record cannot be used: it is truncated, not a record, of
// another schema, or somebody else's. The error beside it names the file.
var ErrRecord = errors.New("record cannot be used")

// State is what a generation's owner last said of it.
type State string

// The states of a generation, in the order they are passed through.
const (
	Starting State = "starting" // gets no new connections yet
	Serving  State = "serving"  // gets the new connections
	Draining State = "draining" // gets no new connections any more
	Ended    State = "ended"
)

func (s State) valid() bool {
	return s == Starting || s == Serving || s == Draining || s == Ended
}

// Listener is one address of a generation.
type Listener struct {
	// Network is as package net has it: tcp, tcp4, tcp6, udp, …, unix.
	Network string `json:"network"`
	// Address is host and port, or a path.
	Address string `json:"address"`
	// V6Only is IPV6_V6ONLY of an IPv6 wildcard.
	V6Only bool `json:"v6only,omitempty"`
	// Inodes are the sockets' inodes, as sock_diag(7) and /proc/PID/fd show them; a
	// generation may have several sockets for one address.
	Inodes []uint64 `json:"inodes,omitempty"`
}

// Record describes one generation. It only describes: whether the owner lives is told
// by the lock (Owned), whether the program does by its identity and its sockets.
type Record struct {
	Schema     int    `json:"schema"` // set by Write
	Service    string `json:"service"`
	Generation int    `json:"generation"` // from 1
	State      State  `json:"state"`
	// Owner speaks for the generation.
	Owner process.Identity `json:"owner"`
	// Program is the launched program; nil where the owner itself serves.
	Program *process.Identity `json:"program,omitempty"`
	// Launched says that the owner is a launcher.
	Launched bool `json:"launched,omitempty"`
	// Command and Directory are what the next generation is started with by default.
	Command   []string `json:"command,omitempty"`
	Directory string   `json:"directory,omitempty"`
	// StopSignal ends the launched program; 0 is none, or that of an older launcher.
	StopSignal syscall.Signal `json:"stop_signal,omitempty"`
	Listeners  []Listener     `json:"listeners,omitempty"`
	Started    time.Time      `json:"started,omitzero"`
	Switched   time.Time      `json:"switched,omitzero"` // zero until it served
}

// Parse reads a record and checks it. Every error wraps ErrRecord. Unknown keys are
// ignored: a later version may add some without another schema.
func Parse(data []byte) (Record, error) {
	if len(data) > maxRecord {
		return Record{}, fmt.Errorf("%w: longer than %d bytes", ErrRecord, maxRecord)
	}
	var r Record
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&r); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return Record{}, fmt.Errorf("%w: it is truncated", ErrRecord)
		}
		return Record{}, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Record{}, fmt.Errorf("%w: something follows it", ErrRecord)
	}
	if err := r.check(); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return r, nil
}

func (r *Record) check() error {
	if r.Schema != Schema {
		return fmt.Errorf("schema %d is not known, only %d is", r.Schema, Schema)
	}
	if err := ValidName(r.Service); err != nil {
		return err
	}
	switch {
	case r.Generation < 1 || r.Generation > maxGeneration:
		return fmt.Errorf("generation %d", r.Generation)
	case !r.State.valid():
		return fmt.Errorf("state %q is not known", r.State)
	case r.Owner.PID < 1:
		return fmt.Errorf("owner's pid %d", r.Owner.PID)
	case r.Program != nil && r.Program.PID < 1:
		return fmt.Errorf("program's pid %d", r.Program.PID)
	case r.StopSignal < 0 || r.StopSignal > maxSignal:
		return fmt.Errorf("stop signal %d", r.StopSignal)
	}
	for _, l := range r.Listeners {
		if l.Network == "" || l.Address == "" {
			return errors.New("a listener without network or address")
		}
	}
	return nil
}
