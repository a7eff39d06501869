package owner

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"overlap/lifecycle/control"
	"overlap/lifecycle/process"
	"overlap/lifecycle/state"
	"overlap/reuse"
)

// FuzzAnswer: whatever a newcomer says, in lines of an operation and a body, a generation answers
// nobody who did not say hello, hands over to nobody who did not say that it has switched, and serves
// again when the newcomer is gone, unless that had leave to end it.
func FuzzAnswer(f *testing.F) {
	f.Add("hello {\"generation\":2,\"pid\":7}\nreserve {\"network\":\"tcp\",\"address\":\"127.0.0.1:80\"}\nyield\n" +
		"event {\"kind\":\"healthy\"}\nswitched {\"micros\":12}\nreturn\n")
	f.Add("hello {\"generation\":2}\nswitched\nleaving\n")
	f.Add("switched\nhello {\"generation\":-1}\nhello {\"generation\":99999999999}\n")
	f.Add("hello null\nreserve []\nevent 7\n\n{}\nhello \n")
	self, err := process.Self()
	if err != nil {
		f.Fatal(err)
	}
	dir, err := state.Open(f.TempDir()+"/state", "web")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { dir.Close() })
	f.Fuzz(func(t *testing.T, said string) {
		o := &Owner{cfg: Config{Name: "web"}, log: slog.New(slog.DiscardHandler), dir: dir, number: 1,
			superseded: make(chan struct{}, 1), takenBack: make(chan struct{}, 1), drained: make(chan struct{}),
			record: state.Record{Service: "web", Generation: 1, State: state.Serving, Owner: self}}
		s := &control.Session{}
		o.talk.Lock()
		for line := range strings.Lines(said) {
			op, body, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			met, handed := o.successor == s, o.handed
			_, err := o.answerLocked(s, op, json.RawMessage(body))
			switch {
			case !met && op != opHello && err == nil:
				t.Fatalf("%q before hello was answered", op)
			case !handed && o.handed && op != opSwitched:
				t.Fatalf("%q made it hand over", op)
			}
		}
		final := o.final
		if o.successor == s {
			o.brokenLocked()
		}
		if !final && (o.handed || o.successor != nil || o.State() != state.Serving) {
			t.Fatalf("the newcomer is gone, and the generation is %s, handed over: %t", o.State(), o.handed)
		}
		o.talk.Unlock()
		close(o.drained)
		o.tidying.Wait()
	})
}

// FuzzWelcome: whatever the serving generation says of its addresses, they can be looked at.
func FuzzWelcome(f *testing.F) {
	f.Add(`{"generation":1,"serving":true,"listeners":[{"network":"tcp","address":"127.0.0.1:80","uid":0,"inodes":[7]}]}`)
	f.Add(`{"listeners":[{"network":"udp","address":"[::]:53","v6only":true},{"network":"unix","address":"/run/x"},{"network":"","address":":"}]}`)
	a, err := reuse.ParseAddress(context.Background(), "tcp", "127.0.0.1:80")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, said string) {
		var w welcome
		if json.Unmarshal([]byte(said), &w) != nil {
			return
		}
		o := &Owner{predecessor: &predecessor{number: w.Generation, listeners: w.Listeners}}
		for _, e := range o.Expected() {
			if !e.AddrPort.IsValid() {
				t.Fatalf("%q makes the address %s", said, e)
			}
		}
		if l, err := o.compare(a); l != nil && err != nil {
			t.Fatalf("%q: both %+v and %v", said, l, err)
		}
		for _, l := range o.before().listeners {
			l.shown()
		}
	})
}
