package cli

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"

	"overlap/lifecycle/control"
	"overlap/lifecycle/process"
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

// width is how much fits into one line of the terminal; a longer one could not be rewritten.
// 0 is not known.
func (p *progress) width() int {
	f, ok := p.to.(*os.File)
	if !ok {
		return 0
	}
	columns, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return max(columns-1, 0)
}

func cut(text string, width int) string {
	runes := []rune(text)
	if width <= 0 || len(runes) <= width {
		return text
	}
	return string(runes[:width])
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
	text = process.Printable(oneLine(text))
	if !p.live {
		fmt.Fprintln(p.to, text)
		return
	}
	fmt.Fprintf(p.to, "\r\x1b[K%s", cut(text, p.width()))
	p.open = true
}

// end leaves the line.
func (p *progress) end() {
	if p.open {
		fmt.Fprint(p.to, "\r\x1b[K")
		p.open = false
	}
}
