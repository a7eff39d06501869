package bench

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Result is the account of a run. Durations are nanoseconds in JSON. Latencies are of
// answered requests only: a refusal is quick, but no answer.
type Result struct {
	Address string        `json:"address"`
	Network string        `json:"network"`
	Mode    Mode          `json:"mode"`
	Clients int           `json:"clients"`
	Rate    float64       `json:"rate,omitempty"` // asked for; 0: closed loop
	Request string        `json:"request"`        // in words, such as "POST /echo, 64 bytes"
	Started time.Time     `json:"started"`
	Elapsed time.Duration `json:"elapsed_ns"` // while new requests began

	Requests  int64           `json:"requests"`            // that ended, failed ones included, and Unsent
	PerSecond float64         `json:"requests_per_second"` // of those that began
	Failed    int64           `json:"failed"`              // of Requests
	ByCause   map[Cause]int64 `json:"failed_by_cause"`
	Delayed   int64           `json:"delayed"` // of Requests, took DelayedAfter or longer
	// Unsent is how many requests of an open loop should have begun and did not, because no
	// client was free until the end. They have failed: a server that answers too few requests
	// to be sent all is as little noticed as one that answers none. No ModeResult has them.
	Unsent int64 `json:"unsent"`
	// IdleClosed is how many keep-alive connections the server closed while nothing
	// was under way on them. No request failed by that.
	IdleClosed int64 `json:"idle_closed"`
	// ConntrackDrops is how many packets this machine dropped meanwhile, in the
	// network namespace of the run, because its table of tracked connections
	// (nf_conntrack) was full. If it is not 0, delays and time-outs need not be the
	// server's. 0 where the kernel tracks none.
	ConntrackDrops int64 `json:"conntrack_drops"`

	Handovers         int     `json:"handovers"`
	FailedPerHandover float64 `json:"failed_per_handover"` // 0 without a handover
	Marks             []Mark  `json:"marks"`

	Latency    Quantiles             `json:"latency"`     // the whole run
	NearSwitch Quantiles             `json:"near_switch"` // some part of them within 100 ms of a switch
	Steady     Quantiles             `json:"steady"`      // all others
	ByMode     map[string]ModeResult `json:"by_mode"`
	// ByGeneration counts answers by their Overlap-Generation header, "" is none.
	ByGeneration []GenerationResult `json:"by_generation"`

	Failures []Failure `json:"failures"` // the first 1000, by time
	Points   []Point   `json:"points"`   // how it went

	generations []string
	line        timeline
}

// Quantiles of latencies. All are 0 where Count is.
type Quantiles struct {
	Count int64         `json:"count"`
	P50   time.Duration `json:"p50_ns"`
	P99   time.Duration `json:"p99_ns"`
	P999  time.Duration `json:"p999_ns"`
	Max   time.Duration `json:"max_ns"`
}

// ModeResult is the part of one way of using connections.
type ModeResult struct {
	Requests int64     `json:"requests"`
	Failed   int64     `json:"failed"`
	Latency  Quantiles `json:"latency"`
}

// GenerationResult is how many requests a generation answered well.
type GenerationResult struct {
	Generation string `json:"generation"`
	Requests   int64  `json:"requests"`
}

// Failure is one request that failed.
type Failure struct {
	At     time.Time     `json:"at"`        // when it failed
	Offset time.Duration `json:"offset_ns"` // when it began, since Result.Started
	Took   time.Duration `json:"took_ns"`
	Cause  Cause         `json:"cause"`
	Mode   Mode          `json:"mode"`
	Error  string        `json:"error"`
}

// Point is a slice of the run. Its quantiles are of requests that began in it, and
// accurate to a quarter; Max is exact.
type Point struct {
	Offset   time.Duration `json:"offset_ns"` // since Result.Started
	Width    time.Duration `json:"width_ns"`
	Requests int64         `json:"requests"` // answered in it
	Failed   int64         `json:"failed"`   // failed in it
	P50      time.Duration `json:"p50_ns"`
	P99      time.Duration `json:"p99_ns"`
	Max      time.Duration `json:"max_ns"`
}

func quantiles(h *hdrhistogram.Histogram) Quantiles {
	if h.TotalCount() == 0 {
		return Quantiles{}
	}
	return Quantiles{
		Count: h.TotalCount(),
		P50:   time.Duration(h.ValueAtQuantile(50)),
		P99:   time.Duration(h.ValueAtQuantile(99)),
		P999:  time.Duration(h.ValueAtQuantile(99.9)),
		Max:   time.Duration(h.Max()),
	}
}

// result sums the tally up. The run has ended.
func (t *tally) result() *Result {
	r := &Result{
		Address: t.Address, Network: t.Network, Mode: t.Mode, Clients: t.Clients,
		Rate: t.run.Rate, Request: t.requestInWords(), Started: t.base,
		Elapsed:  time.Duration(t.stopAt),
		Requests: t.requests, Failed: t.failed, Delayed: t.delayed,
		ByCause:    make(map[Cause]int64),
		ByMode:     make(map[string]ModeResult),
		Marks:      t.marks.All(),
		NearSwitch: quantiles(t.near), Steady: quantiles(t.steady),
		Failures: t.failures,

		ConntrackDrops: max(0, conntrackDrops()-t.dropsBefore),
		generations:    t.generations,
		line:           t.line,
	}
	if t.Network == "udp" {
		r.Mode = datagrams
	}
	whole := newHistogram()
	for mode, m := range t.byMode {
		if m.latency != nil {
			whole.Merge(m.latency)
			r.ByMode[Mode(mode).String()] = ModeResult{m.requests, m.failed, quantiles(m.latency)}
		}
	}
	r.Latency = quantiles(whole)
	for cause, n := range t.byCause {
		if n > 0 {
			r.ByCause[Cause(cause)] = n
		}
	}
	for _, c := range t.clients {
		r.IdleClosed += c.idleClosed
	}
	slices.SortStableFunc(r.Failures, func(a, b Failure) int { return a.At.Compare(b.At) })
	// Those that ended after the last began belong to the time in which they began.
	if t.stopAt > 0 {
		r.PerSecond = float64(r.Requests) / r.Elapsed.Seconds()
	}
	if r.Unsent = t.unsent(); r.Unsent > 0 {
		r.Requests += r.Unsent
		r.Failed += r.Unsent
		r.ByCause[Unsent] = r.Unsent
	}
	r.Handovers = len(switches(r.Marks, t.base))
	if r.Handovers > 0 {
		r.FailedPerHandover = float64(r.Failed) / float64(r.Handovers)
	}
	r.countGenerations(t.byGen)
	r.points()
	return r
}

// lastMoment is how late a request may be at the end of a run without being counted as unsent: it
// waited for a client like others before it, and the end was in the way.
const lastMoment = 100 * time.Millisecond

// unsent is how many requests of an open loop were due and did not begin.
func (r *run) unsent() int64 {
	if r.Rate <= 0 {
		return 0
	}
	due := int64(r.Rate * (time.Duration(r.stopAt) - lastMoment).Seconds())
	if r.Requests > 0 {
		due = min(due, r.Requests)
	}
	return max(0, due-r.issued.Load())
}

func (r *run) requestInWords() string {
	if r.Network == "udp" {
		return "datagrams, " + plural(int64(sequenceSize+len(r.Body)), "byte")
	}
	scheme := ""
	if r.TLS != nil {
		scheme = "https, "
	}
	if len(r.Body) == 0 {
		return fmt.Sprintf("%s%s %s", scheme, r.Method, r.Path)
	}
	return fmt.Sprintf("%s%s %s, %s", scheme, r.Method, r.Path, plural(int64(len(r.Body)), "byte"))
}

func (r *Result) countGenerations(byGen []int64) {
	for id, n := range byGen {
		if n > 0 {
			r.ByGeneration = append(r.ByGeneration, GenerationResult{r.generations[id], n})
		}
	}
	slices.SortFunc(r.ByGeneration, func(a, b GenerationResult) int {
		return compareGenerations(a.Generation, b.Generation)
	})
}

// compareGenerations orders numbers as numbers, before everything else.
func compareGenerations(a, b string) int {
	m, errA := strconv.ParseUint(a, 10, 64)
	n, errB := strconv.ParseUint(b, 10, 64)
	switch {
	case errA == nil && errB == nil:
		return cmp.Compare(m, n)
	case errA == nil:
		return -1
	case errB == nil:
		return 1
	}
	return cmp.Compare(a, b)
}

func (r *Result) points() {
	for i := range r.line.slots {
		s := &r.line.slots[i]
		r.Points = append(r.Points, Point{
			Offset:   time.Duration(int64(i) * r.line.width),
			Width:    time.Duration(r.line.width),
			Requests: s.ended,
			Failed:   s.failed,
			P50:      s.quantile(0.5),
			P99:      s.quantile(0.99),
			Max:      time.Duration(s.longest),
		})
	}
}

// JSON returns the account as one JSON object. A list of nothing is [], not null.
func (r *Result) JSON() ([]byte, error) {
	full := *r
	full.Marks = orEmpty(r.Marks)
	full.ByGeneration = orEmpty(r.ByGeneration)
	full.Failures = orEmpty(r.Failures)
	full.Points = orEmpty(r.Points)
	return json.Marshal(full)
}

func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// Outcome says in one sentence without a full stop whether clients noticed anything.
func (r *Result) Outcome() string {
	during := ""
	if r.Handovers > 0 {
		during = fmt.Sprintf(" in %s", plural(int64(r.Handovers), "handover"))
	}
	switch {
	case r.Requests == 0:
		return "No request was made"
	case r.Failed == 0:
		return fmt.Sprintf("None of %s failed%s", plural(r.Requests, "request"), during)
	}
	return fmt.Sprintf("%s of %s failed%s: %s", count(r.Failed), plural(r.Requests, "request"), during, r.causesInWords())
}

// causesInWords lists the causes, the most frequent first.
func (r *Result) causesInWords() string {
	list := make([]Cause, 0, len(r.ByCause))
	for c := range r.ByCause {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b Cause) int {
		return cmp.Or(cmp.Compare(r.ByCause[b], r.ByCause[a]), cmp.Compare(a, b))
	})
	words := make([]string, len(list))
	for i, c := range list {
		words[i] = count(r.ByCause[c]) + " " + c.String()
	}
	return strings.Join(words, ", ")
}

// facts are the lines of the table's first part: name, value, remark.
func (r *Result) facts() [][3]string {
	facts := [][3]string{
		{"requests", count(r.Requests), count(int64(r.PerSecond)) + " a second"},
		{"failed", count(r.Failed), r.causesInWords()},
		{"delayed", count(r.Delayed), "took 900 ms or longer, as when a SYN is sent again"},
	}
	switch {
	case r.Delayed == 0:
		facts[2][2] = ""
	case r.Network == "udp":
		facts[2][2] = "took 900 ms or longer"
	}
	if len(r.Failures) > 0 {
		first := r.Failures[0]
		facts = slices.Insert(facts, 2, [3]string{"first failed", short(first.Offset), first.Error})
	}
	if r.Unsent > 0 {
		facts = append(facts, [3]string{"not sent", count(r.Unsent), "failed: they were due, and no client was free"})
	}
	if r.IdleClosed > 0 {
		facts = append(facts, [3]string{"idle closed", count(r.IdleClosed), "connections that the server closed unused: no failure"})
	}
	if r.ConntrackDrops > 0 {
		facts = append(facts, [3]string{"own drops", count(r.ConntrackDrops),
			"packets that this machine's connection tracking dropped (table full: raise net.netfilter.nf_conntrack_max): delays and time-outs may be its fault"})
	}
	if r.Handovers > 0 {
		facts = append(facts, [3]string{"handovers", count(int64(r.Handovers)),
			perHandover(r.FailedPerHandover) + " failed a handover"})
	}
	return facts
}

// perHandover writes a mean with three digits, or more where it has more before the point.
func perHandover(mean float64) string {
	if mean >= 100 {
		return count(int64(math.Round(mean)))
	}
	return strconv.FormatFloat(mean, 'g', 3, 64)
}

// latencyRow is a line of the table of latencies.
type latencyRow struct {
	Name string
	Quantiles
}

func (r *Result) latencyRows() []latencyRow {
	rows := []latencyRow{{"whole run", r.Latency}}
	if r.Handovers > 0 {
		rows = append(rows, latencyRow{"±100 ms of a switch", r.NearSwitch}, latencyRow{"steady", r.Steady})
	}
	if len(r.ByMode) > 1 {
		for _, mode := range []Mode{Close, KeepAlive} {
			rows = append(rows, latencyRow{mode.String(), r.ByMode[mode.String()].Latency})
		}
	}
	return rows
}

// maxTableGenerations bounds the table's lines for a run of many generations.
const maxTableGenerations = 12

// Table returns the account as text for a terminal.
func (r *Result) Table() string {
	var b strings.Builder
	facts := r.facts()
	width := 0
	for _, f := range facts {
		width = max(width, len(f[1]))
	}
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, f := range facts {
		fmt.Fprintf(w, "%s\t%*s\t%s\n", f[0], width, f[1], f[2])
	}
	w.Flush()

	b.WriteByte('\n')
	// Numbers are aligned to the right; the first column is filled up to look aligned
	// to the left.
	const name = "%-19s"
	w = tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, name+"\tp50\tp99\tp99.9\tmax\tanswered\t\n", "latency")
	for _, row := range r.latencyRows() {
		fmt.Fprintf(w, name+"\t%s\t%s\t%s\t%s\t%s\t\n", row.Name,
			short(row.P50), short(row.P99), short(row.P999), short(row.Max), count(row.Count))
	}
	if len(r.ByGeneration) > 0 && r.ByGeneration[0].Generation != "" {
		fmt.Fprintf(w, "\n"+name+"\tanswered\t\n", "generation")
		for _, g := range r.generationRows(maxTableGenerations) {
			fmt.Fprintf(w, name+"\t%s\t\n", g.Generation, count(g.Requests))
		}
	}
	w.Flush()
	lines := strings.Split(b.String(), "\n")
	for i, line := range lines {
		if i > len(facts) {
			line = strings.TrimPrefix(line, "  ") // the padding before the first column
		}
		lines[i] = strings.TrimRight(line, " ")
	}
	return strings.Join(lines, "\n")
}

// generationRows returns ByGeneration; if they are many more than limit, in that many
// lines, with those in the middle as one.
func (r *Result) generationRows(limit int) []GenerationResult {
	all := slices.Clone(r.ByGeneration)
	for i := range all {
		if all[i].Generation == "" {
			all[i].Generation = "not named"
		}
	}
	if len(all) <= limit+limit/2 {
		return all
	}
	half := limit / 2
	middle := all[half : len(all)-half+1]
	sum := GenerationResult{Generation: middle[0].Generation + " to " + middle[len(middle)-1].Generation}
	for _, g := range middle {
		sum.Requests += g.Requests
	}
	rows := append(slices.Clone(all[:half]), sum)
	return append(rows, all[len(all)-half+1:]...)
}

// count writes a number with separators.
func count(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func plural(n int64, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return count(n) + " " + word + "s"
}

// short writes a duration with three digits.
func short(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	unit, name := time.Second, "s"
	switch {
	case d < time.Millisecond:
		unit, name = time.Microsecond, "µs"
	case d < time.Second:
		unit, name = time.Millisecond, "ms"
	}
	v := float64(d) / float64(unit)
	digits := 0
	switch {
	case v < 10:
		digits = 2
	case v < 100:
		digits = 1
	}
	return strconv.FormatFloat(v, 'f', digits, 64) + " " + name
}
