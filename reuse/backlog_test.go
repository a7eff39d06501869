package reuse

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"overlap/reuse/sockdiag"
)

// backlogFake stands in for the kernel: each dump of half-open connections and
// each queue is scripted, and no time passes.
type backlogFake struct {
	dumps  [][]uint64 // cookies, the last one stays
	asked  int
	queue  []int // lengths, the last one stays
	looked int
	sleeps int
	events []string
	failed error
}

func (f *backlogFake) HalfOpen(port uint16, families ...uint8) ([]sockdiag.Socket, error) {
	f.events = append(f.events, "half-open")
	if f.failed != nil {
		return nil, f.failed
	}
	cookies := f.dumps[min(f.asked, len(f.dumps)-1)]
	f.asked++
	var found []sockdiag.Socket
	for _, c := range cookies {
		found = append(found, sockdiag.Socket{Cookie: c, Local: netip.MustParseAddrPort("127.0.0.1:80")})
	}
	return found, nil
}

func (f *backlogFake) Close() error { return nil }

func (f *backlogFake) Len() (int, bool, error) {
	f.events = append(f.events, "queue")
	n := f.queue[min(f.looked, len(f.queue)-1)]
	f.looked++
	return n, true, nil
}

func (f *backlogFake) wait(ctx context.Context, limit int) error {
	w := backlogWait{
		ctx:  ctx,
		open: func() (halfOpener, error) { return f, nil },
		sleep: func(ctx context.Context, _ time.Duration) error {
			if f.sleeps++; f.sleeps > limit {
				return context.DeadlineExceeded
			}
			return ctx.Err()
		},
	}
	return w.wait([]uint16{80}, []Queue{f})
}

// crowd is a dump so long that it may miss some.
func crowd(cookies ...uint64) []uint64 {
	for i := range uint64(2 * backlogOneAnswer) {
		cookies = append(cookies, 1000+i)
	}
	return cookies
}

func TestBacklogRules(t *testing.T) {
	const enough = 1000
	forever := func(cookies ...uint64) [][]uint64 { return [][]uint64{cookies} }
	for _, tt := range []struct {
		name  string
		fake  backlogFake
		left  string // "" for a proof
		asked int    // dumps at least
	}{
		{"nothing", backlogFake{dumps: forever(), queue: []int{0}}, "", 1},
		{"stays half-open", backlogFake{dumps: forever(1, 2), queue: []int{0}}, "2 left", 3},
		{"gone", backlogFake{dumps: [][]uint64{{1}, {1}, {}, {1}}, queue: []int{0}}, "", 3},
		{"another connection comes after", backlogFake{dumps: [][]uint64{{1}, {2}}, queue: []int{0}}, "", 2},
		{"many, one seen by the second dump only, then always",
			backlogFake{dumps: [][]uint64{crowd(), crowd(1), crowd(), {1}}, queue: []int{0}}, "1 left", 3},
		{"many, missed by two dumps", backlogFake{dumps: [][]uint64{crowd(1), crowd(1), crowd(1), {}, {}, {1}}, queue: []int{0}}, "1 left", 6},
		{"many, gone from three", backlogFake{dumps: [][]uint64{crowd(1), crowd(1), crowd(1), {}, {}, {}, {1}}, queue: []int{0}}, "", 6},
		{"queue stays", backlogFake{dumps: forever(), queue: []int{3}}, "1 queues not empty", 1},
		{"queue drains", backlogFake{dumps: forever(), queue: []int{3, 1, 0}}, "", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.fake.wait(t.Context(), enough)
			if (tt.left == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.left) {
				t.Errorf("got %v, want %q", err, tt.left)
			}
			if err != nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v does not wrap the context's error", err)
			}
			if tt.fake.asked < tt.asked {
				t.Errorf("asked %d times, want %d", tt.fake.asked, tt.asked)
			}
			if err == nil {
				last := strings.LastIndex(strings.Join(tt.fake.events, " "), "half-open")
				first := strings.Index(strings.Join(tt.fake.events, " "), "queue")
				if first < last {
					t.Errorf("a queue was read before the last half-open connection was gone: %v", tt.fake.events)
				}
			}
		})
	}
}

func TestBacklogNoProof(t *testing.T) {
	f := &backlogFake{failed: errors.New("refused by a sandbox"), queue: []int{0}}
	err := f.wait(t.Context(), 100)
	if !errors.Is(err, ErrNoProof) || !errors.Is(err, f.failed) {
		t.Errorf("got %v", err)
	}
}

func TestBacklogCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := AwaitBacklog(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// A dump that misses the listener while others come and go is asked again.
func TestBacklogInodeQueueAsksAgain(t *testing.T) {
	here := []sockdiag.Socket{{Inode: 7, RQueue: 2}}
	for missed, known := range map[int]bool{0: true, 1: true, 3: true, 4: false} {
		asked := 0
		n, got, err := inodeQueue{proto: "tcp", port: 80, inode: 7}.find(func(uint16, ...uint8) ([]sockdiag.Socket, error) {
			if asked++; asked <= missed {
				return nil, nil
			}
			return here, nil
		})
		if err != nil || got != known || known != (n == 2) {
			t.Errorf("missed by %d dumps: %d, %v, %v", missed, n, got, err)
		}
	}
}

func TestBacklogUnknownProtocol(t *testing.T) {
	if _, _, err := InodeQueue("sctp", 1, 1).Len(); !errors.Is(err, ErrNoProof) {
		t.Errorf("got %v", err)
	}
}

// TestBacklogReferences: the listeners are released when each is known to have its own reference
// only, or is missing several times in a row.
func TestBacklogReferences(t *testing.T) {
	type reading map[uint64]int
	for _, tt := range []struct {
		name     string
		readings []reading
		released []bool
	}{
		{"at once", []reading{{7: 1, 8: 1}}, []bool{true}},
		{"one later", []reading{{7: 1, 8: 3}, {7: 1, 8: 2}, {7: 1, 8: 1}}, []bool{false, false, true}},
		{"missed", []reading{{7: 1}, {7: 1}, {7: 1, 8: 2}, {7: 1}, {7: 1, 8: 1}}, []bool{false, false, false, false, true}},
		{"gone", []reading{{7: 1}, {7: 1}, {7: 1}, {7: 1}}, []bool{false, false, false, true}},
		{"gone, but the other has not", []reading{{7: 2}, {7: 2}, {7: 2}, {7: 2}, {7: 1}}, []bool{false, false, false, false, true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := referencesOf([]Queue{InodeQueue("tcp4", 80, 7), InodeQueue("tcp4", 80, 8)})
			for i, want := range tt.released {
				r.read = func(uint8, []uint64) (map[uint64]sockdiag.Reference, error) {
					found := map[uint64]sockdiag.Reference{}
					for inode, n := range tt.readings[i] {
						found[inode] = sockdiag.Reference{Count: n}
					}
					return found, nil
				}
				if got, err := r.released(); err != nil || got != want {
					t.Fatalf("reading %d: %v, %v", i, got, err)
				}
			}
		})
	}
	if referencesOf(nil) != nil || referencesOf([]Queue{&backlogFake{}}) != nil {
		t.Error("nobody's references were to prove something")
	}
}

// TestBacklogReferencesUnread: where the references can't be read, the list of half-open connections decides.
func TestBacklogReferencesUnread(t *testing.T) {
	f := &backlogFake{dumps: [][]uint64{{1}, {1}, {}}, queue: []int{0}}
	w := backlogWait{
		ctx:        t.Context(),
		open:       func() (halfOpener, error) { return f, nil },
		references: referencesOf([]Queue{InodeQueue("tcp4", 80, 7)}),
	}
	w.references.read = func(uint8, []uint64) (map[uint64]sockdiag.Reference, error) {
		return nil, errors.New("refused by a sandbox")
	}
	slept := time.Duration(0)
	w.sleep = func(ctx context.Context, d time.Duration) error { slept += d; return ctx.Err() }
	if err := w.wait([]uint16{80}, []Queue{f}); err != nil || f.asked != 3 || slept >= backlogListAfter {
		t.Errorf("%v after %d lists and %v", err, f.asked, slept)
	}
}
