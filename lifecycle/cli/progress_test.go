package cli

import (
	"bytes"
	"testing"

	"overlap/lifecycle/control"
)

func TestProgress(t *testing.T) {
	steps := []control.Event{
		{Kind: control.KindStarting, Generation: 2},
		{Kind: control.KindSwitched, Generation: 2},
		{Kind: control.KindSwitched, Generation: 2, Final: true},
	}
	for _, test := range []struct {
		live bool
		want string
	}{
		{false, "overlap: web: generation 2 is starting (0 ms)\noverlap: web: generation 2 serves (0 ms)\n"},
		{true, "\r\x1b[Koverlap: web: generation 2 is starting (0 ms)\r\x1b[Koverlap: web: generation 2 serves (0 ms)\r\x1b[K"},
	} {
		var out bytes.Buffer
		p := newProgress(&out, "web")
		p.live = test.live
		for _, e := range steps {
			if !e.Final {
				p.line(wordsOfEvent("web", e, 0))
			} else {
				p.event(e) // the outcome is told elsewhere
			}
		}
		p.end()
		if out.String() != test.want {
			t.Errorf("live %v: %q, want %q", test.live, out.String(), test.want)
		}
	}
}

func TestCut(t *testing.T) {
	for _, test := range []struct {
		text  string
		width int
		want  string
	}{{"abc", 0, "abc"}, {"abc", 3, "abc"}, {"abc", 2, "ab"}, {"äöü", 2, "äö"}} {
		if got := cut(test.text, test.width); got != test.want {
			t.Errorf("%q at %d: %q", test.text, test.width, got)
		}
	}
}
