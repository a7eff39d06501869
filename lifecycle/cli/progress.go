package cli

import (
	"fmt"
	"io"
	"time"

	"overlap/lifecycle/control"
)

// progress shows how far something is: on a terminal one line that changes, elsewhere a line
// for each step. It is not safe for concurrent use.
type progress struct {
	to      io.Writer
	live    bool
	service string
	began   time.Time
	open    bool // the terminal's line has no end yet
}

func newProgress(to io.Writer, service string) *progress {
	return &progress{to: to, live: isTerminal(to), service: service, began: time.Now()}
}

// event shows one step. The last event is the outcome, which is told elsewhere.
func (p *progress) event(e control.Event) {
	if !e.Final {
		p.line(wordsOfEvent(p.service, e, time.Since(p.began)))
	}
}

func (p *progress) line(text string) {
	if !p.live {
		fmt.Fprintln(p.to, text)
		return
	}
	fmt.Fprintf(p.to, "\r\x1b[K%s", text)
	p.open = true
}

// end leaves the line.
func (p *progress) end() {
	if p.open {
		fmt.Fprint(p.to, "\r\x1b[K")
		p.open = false
	}
}
