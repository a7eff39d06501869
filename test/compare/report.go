package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"overlap/lifecycle/bench"
)

// row is a rival in one mode, all rounds together. Counts are sums. Quantiles, rates and ratios
// are medians of the rounds; a maximum is the largest of all.
type row struct {
	*rival
	mode bench.Mode

	outcomes map[int]*outcome // by round
	problems []string         // trials that could not be measured, reloads that failed

	requests, failed, delayed, drops int64
	handovers                        int
	causes                           map[bench.Cause]int64

	p50, p99, p999, longest, near time.Duration
	switched, slowest             time.Duration // median and maximum
	reloadCPU, requestCPU         time.Duration // mean and median, 0: not measured
	perSecond                     float64       // while it is reloaded
	// against the first rival in the same round: while reloaded, and before.
	ratio, steadyRatio float64
	nearRatio          float64 // p99.9 near a switch, against that of all other requests
	kept               float64 // requests a second while reloaded, as a share of those before
}

// aHandover is how many requests failed for each handover.
func (r *row) aHandover() float64 {
	if r.handovers == 0 {
		return 0
	}
	return float64(r.failed) / float64(r.handovers)
}

// lossless says that no request failed or had to wait for a second SYN, and no reload failed.
func (r *row) lossless() bool { return r.measured() && r.failed+r.delayed == 0 && len(r.problems) == 0 }

func (r *row) measured() bool { return len(r.outcomes) > 0 }

// report is the account of a comparison.
type report struct {
	*comparison
	place   place
	rows    []*row
	skipped []string
	began   time.Time
}

func newReport(c *comparison) *report { return &report{comparison: c, began: time.Now()} }

func (p *report) skip(r *rival, why string) {
	p.skipped = append(p.skipped, r.title+": "+why)
}

func (p *report) find(key string, mode bench.Mode) *row {
	i := slices.IndexFunc(p.rows, func(r *row) bool { return r.key == key && r.mode == mode })
	if i < 0 {
		return nil
	}
	return p.rows[i]
}

// add books one trial.
func (p *report) add(r *rival, mode bench.Mode, round int, o *outcome, err error) {
	w := p.find(r.key, mode)
	if w == nil {
		w = &row{rival: r, mode: mode, outcomes: make(map[int]*outcome), causes: make(map[bench.Cause]int64)}
		p.rows = append(p.rows, w)
	}
	if err != nil {
		w.problems = append(w.problems, fmt.Sprintf("round %d was not measured: %v", round+1, err))
		return
	}
	w.outcomes[round] = o
	if o.Failed > 0 {
		w.problems = append(w.problems, fmt.Sprintf("round %d: a reload failed: %s", round+1, o.Reason))
	}
}

// sum fills in the rows, in the order of the rivals.
func (p *report) sum() {
	order := keys()
	slices.SortStableFunc(p.rows, func(a, b *row) int {
		return cmp.Or(cmp.Compare(a.mode, b.mode), cmp.Compare(slices.Index(order, a.key), slices.Index(order, b.key)))
	})
	for _, r := range p.rows {
		r.sum(p.find(rivals[0].key, r.mode))
	}
	// CPU time of a reload is measured in one mode only, and the same in each.
	for _, r := range p.rows {
		if first := p.find(r.key, p.modes[0]); r.reloadCPU == 0 && first != nil {
			r.reloadCPU = first.reloadCPU
		}
	}
}

func (r *row) sum(standard *row) {
	var p50, p99, p999, near, switches, reloads, requests []time.Duration
	var ratios, steady, kept, perSecond, nears []float64
	for _, round := range slices.Sorted(maps.Keys(r.outcomes)) {
		o := r.outcomes[round]
		res := o.Result
		r.requests += res.Requests
		r.failed += res.Failed
		r.delayed += res.Delayed
		r.drops += res.ConntrackDrops
		r.handovers += res.Handovers
		for c, n := range res.ByCause {
			r.causes[c] += n
		}
		p50, p99, p999 = append(p50, res.Latency.P50), append(p99, res.Latency.P99), append(p999, res.Latency.P999)
		near = append(near, res.NearSwitch.P999)
		if res.Steady.P999 > 0 && res.NearSwitch.P999 > 0 {
			nears = append(nears, float64(res.NearSwitch.P999)/float64(res.Steady.P999))
		}
		r.longest = max(r.longest, res.Latency.Max)
		switches = append(switches, o.Switches...)
		reloads = append(reloads, o.ReloadCPU...)
		requests = append(requests, o.RequestCPU)
		perSecond = append(perSecond, o.During)
		if o.Before > 0 {
			kept = append(kept, o.During/o.Before)
		}
		if standard == nil {
			continue
		}
		if s := standard.outcomes[round]; s != nil && s.During > 0 && s.Before > 0 {
			ratios, steady = append(ratios, o.During/s.During), append(steady, o.Before/s.Before)
		}
	}
	r.p50, r.p99, r.p999, r.near = median(p50), median(p99), median(p999), median(near)
	r.switched, r.reloadCPU, r.requestCPU = median(switches), mean(reloads), median(requests)
	if len(switches) > 0 {
		r.slowest = slices.Max(switches)
	}
	r.perSecond, r.kept, r.ratio, r.steadyRatio, r.nearRatio = median(perSecond), median(kept), median(ratios), median(steady), median(nears)
}

func median[T time.Duration | float64](list []T) T {
	if len(list) == 0 {
		return 0
	}
	list = slices.Sorted(slices.Values(list))
	n := len(list)
	return (list[(n-1)/2] + list[n/2]) / 2
}

// mean is used where single values are coarse: what a process has reaped is told in ticks.
func mean(list []time.Duration) time.Duration {
	var sum time.Duration
	for _, d := range list {
		sum += d
	}
	return sum / time.Duration(max(len(list), 1))
}

// write writes the table and the picture.
func (p *report) write(path string, stdout io.Writer) error {
	p.sum()
	if path == "" {
		_, err := io.WriteString(stdout, p.markdown(""))
		return err
	}
	picture := strings.TrimSuffix(path, filepath.Ext(path)) + ".svg"
	if err := os.WriteFile(picture, []byte(p.picture()), 0o644); err != nil {
		return fmt.Errorf("write the picture: %w", err)
	}
	if err := os.WriteFile(path, []byte(p.markdown(filepath.Base(picture))), 0o644); err != nil {
		return fmt.Errorf("write the table: %w", err)
	}
	return nil
}

// modeTitles name the modes for readers.
var modeTitles = map[bench.Mode]string{
	bench.Close:     "A connection for each request",
	bench.KeepAlive: "Keep-alive connections",
	bench.Both:      "Both kinds of clients at once",
}

func (p *report) markdown(picture string) string {
	var b strings.Builder
	f := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	f("# Every rival in one run\n")
	f("What clients noticed while a server was replaced with its next version, for each way of")
	f("replacing it, under the same load on the same machine in one run. Written by\n")
	f("    %s\n", p.place.command)
	if picture != "" {
		f("![The same as a picture](%s)\n", picture)
	}
	f("%s\n", p.conditions())
	for _, mode := range p.modes {
		f("## %s\n", modeTitles[mode])
		p.table(f, mode)
	}
	f("%s\n", notes)
	f("## Who wins\n")
	for _, mode := range p.modes {
		f("%s:\n", modeTitles[mode])
		for _, line := range p.winners(mode) {
			f("- %s", line)
		}
		f("")
	}
	f("## How each one was reloaded\n")
	for _, r := range p.rivals {
		if slices.ContainsFunc(p.rows, func(w *row) bool { return w.rival == r }) {
			f("- **%s**: %s.", r.title, r.how)
		}
	}
	f("\n## Not measured\n")
	for _, why := range append(slices.Clone(p.skipped), absent...) {
		f("- %s", why)
	}
	for _, r := range p.rows {
		for _, problem := range r.problems {
			f("- %s, %s: %s", r.title, r.mode, problem)
		}
	}
	return b.String()
}

// conditions says what the numbers stand on.
func (p *report) conditions() string {
	network := "in a network namespace\nof each trial's own"
	if !p.ownNetwork {
		network = "in the machine's own network"
	}
	var drops int64
	for _, r := range p.rows {
		drops += r.drops
	}
	text := fmt.Sprintf("%s, %s. %s; %s.\n%d clients in a closed loop over the loopback %s, GET, %d bytes\nof answer, no silent retries; %s of %s in each mode, at least %s apart,\neach begun when the one before was over. The load generator shares the machine with the servers, and their session, so that the scheduler weighs them together.",
		p.began.Format("2006-01-02"), p.place.machine, p.place.kernel, p.place.versions, p.clients, network, len(answerBody),
		plural(p.rounds, "round"), plural(p.reloads, "reload"), p.every)
	if drops > 0 {
		text += fmt.Sprintf("\nThis machine's connection tracking dropped %d packets meanwhile: delays may be its fault.", drops)
	}
	return text
}

const notes = `Bold is the best of those that lost and delayed nothing; latencies and rates compare only among servers
of the same handler: the Go one, nginx, or Node. HAProxy has no other of its kind here.

- Counts are sums, latencies and rates medians of the rounds, max is the largest of all.
- *delayed*: took 900 ms or longer, as when a SYN is sent again.
- *p99.9 near*: of requests within 100 ms of a switch; in parentheses over that of all its other requests.
- *to switch*: from the command to the first answer of the new version to a new connection, median and
  slowest; the start of the new process is in it.
- *rate*: answers a second while it is reloaded, over those of the first line in the same round; in
  parentheses the same before the first reload. *kept*: the one over the other of the rival itself.
- *CPU, reload*: user and system time of all its processes for a reload without load, soon after the load
  with a connection for each request, mean, right to a few ms (what masters and launchers have waited for
  is told in ticks of 10 ms). *CPU, request*: for a request before the first reload.
`

func (p *report) table(f func(string, ...any), mode bench.Mode) {
	f("| | requests | failed | a handover | delayed | p50 | p99 | p99.9 | max | p99.9 near | to switch | rate | kept | CPU, reload | CPU, request |")
	f("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
	best := p.bold(mode)
	for _, r := range p.rows {
		if r.mode != mode {
			continue
		}
		if !r.measured() {
			f("| %s | not measured, see below | | | | | | | | | | | | | |", r.title)
			continue
		}
		mark := func(name, text string) string {
			if best[name][r] {
				return "**" + text + "**"
			}
			return text
		}
		f("| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s (%s) | %s (%s) | %s (%s) | %s | %s | %s |", r.title,
			count(r.requests), r.failures(), number(r.aHandover()), count(r.delayed),
			short(r.p50), short(r.p99), mark(byP999, short(r.p999)), short(r.longest), mark(byNear, short(r.near)), mark(byNearRatio, ratio(r.nearRatio)),
			mark(bySwitch, short(r.switched)), short(r.slowest), mark(byRate, ratio(r.ratio)), ratio(r.steadyRatio),
			mark(byKept, ratio(r.kept)), mark(byCPU, short(r.reloadCPU)), short(r.requestCPU))
	}
	f("")
}

// bold finds for each measure the rows that are best of those without loss.
func (p *report) bold(mode bench.Mode) map[string]map[*row]bool {
	var clean []*row
	for _, r := range p.rows {
		if r.mode == mode && r.lossless() {
			clean = append(clean, r)
		}
	}
	found := make(map[string]map[*row]bool)
	for _, m := range measures {
		found[m.name] = make(map[*row]bool)
		for _, rows := range m.groups(clean) {
			ours, theirs := m.best(rows, true), m.best(rows, false)
			if ours == nil || theirs != nil && m.better(m.of(theirs), m.of(ours)) {
				ours = theirs
			}
			if ours != nil {
				found[m.name][ours] = true
			}
		}
	}
	return found
}

// failures is how many requests failed, and of what.
func (r *row) failures() string {
	if r.failed == 0 {
		return "**0**"
	}
	causes := slices.SortedFunc(maps.Keys(r.causes), func(a, b bench.Cause) int {
		return cmp.Or(cmp.Compare(r.causes[b], r.causes[a]), cmp.Compare(a, b))
	})
	var list []string
	for _, c := range causes {
		list = append(list, count(r.causes[c])+" "+c.String())
	}
	return fmt.Sprintf("%s (%s)", count(r.failed), strings.Join(list, ", "))
}

// level is how near two numbers must be for nobody to have won.
const level = 1.05

// measure is something to win.
type measure struct {
	name string
	of   func(*row) float64 // 0: not known
	more bool               // more is better
	same bool               // only servers of the same handler compare
	text func(float64) string
}

// The measures' names.
const (
	byNear      = "p99.9 near a switch"
	byP999      = "p99.9 of the run"
	byNearRatio = "p99.9 near a switch against that of its other requests"
	byRate      = "requests a second while reloaded"
	byKept      = "share of its own rate kept while reloaded"
	bySwitch    = "time to the switch"
	byCPU       = "CPU time of a reload"
)

func duration(of func(*row) time.Duration) func(*row) float64 {
	return func(r *row) float64 { return float64(of(r)) }
}

func shortFloat(v float64) string { return short(time.Duration(v)) }

var measures = []measure{
	{name: byNear, of: duration(func(r *row) time.Duration { return r.near }), same: true, text: shortFloat},
	{name: byP999, of: duration(func(r *row) time.Duration { return r.p999 }), same: true, text: shortFloat},
	{name: byNearRatio, of: func(r *row) float64 { return r.nearRatio }, text: ratio},
	{name: byRate, of: func(r *row) float64 { return r.ratio }, more: true, same: true, text: ratio},
	{name: byKept, of: func(r *row) float64 { return r.kept }, more: true, text: ratio},
	{name: bySwitch, of: duration(func(r *row) time.Duration { return r.switched }), text: shortFloat},
	{name: byCPU, of: duration(func(r *row) time.Duration { return r.reloadCPU }), text: shortFloat},
}

// winners says who lost nothing in a mode, and for each measure who is best: of those that lost
// nothing, and of all others where one of them is better still.
func (p *report) winners(mode bench.Mode) []string {
	var clean, lossy []*row
	for _, r := range p.rows {
		if r.mode == mode && r.lossless() {
			clean = append(clean, r)
		} else if r.mode == mode && r.measured() {
			lossy = append(lossy, r)
		}
	}
	lines := []string{fmt.Sprintf("nothing failed and nothing was delayed with %s.", titles(clean))}
	for _, m := range measures {
		cleanOf, lossyOf := m.groups(clean), m.groups(lossy)
		for _, handler := range p.handlers() {
			if !m.same && handler != "" || m.same && handler == "" {
				continue
			}
			name := m.name
			if m.same {
				name += ", " + handler
			}
			if line := m.winner(cleanOf[handler], lossyOf[handler]); line != "" {
				lines = append(lines, name+": "+line)
			}
		}
	}
	return lines
}

// handlers are those of the rivals, in their order, after "", which is all of them together.
func (p *report) handlers() []string {
	all := []string{""}
	for _, r := range p.rows {
		if !slices.Contains(all, r.handler) {
			all = append(all, r.handler)
		}
	}
	return all
}

// groups are the rows that compare with each other: by their handler, or all of them under "".
func (m measure) groups(rows []*row) map[string][]*row {
	if !m.same {
		return map[string][]*row{"": rows}
	}
	groups := make(map[string][]*row)
	for _, r := range rows {
		groups[r.handler] = append(groups[r.handler], r)
	}
	return groups
}

func titles(rows []*row) string {
	if len(rows) == 0 {
		return "nobody"
	}
	var list []string
	for _, r := range rows {
		list = append(list, r.title)
	}
	return strings.Join(list, "; ")
}

// best returns the best of overlap's rows, or of the others', among those that compare.
func (m measure) best(rows []*row, ours bool) *row {
	var best *row
	for _, r := range rows {
		if v := m.of(r); r.ours == ours && v > 0 && (best == nil || m.better(v, m.of(best))) {
			best = r
		}
	}
	return best
}

func (m measure) better(a, b float64) bool { return m.more && a > b || !m.more && a < b }

func (m measure) winner(clean, lossy []*row) string {
	ours, theirs := m.best(clean, true), m.best(clean, false)
	if ours == nil {
		ours = m.best(lossy, true)
	}
	if ours == nil {
		return ""
	}
	mine := m.of(ours)
	say := func(r *row) string { return fmt.Sprintf("%s (%s)", r.title, m.text(m.of(r))) }
	var text string
	switch {
	case theirs == nil:
		text = say(ours) + "; no rival without loss to compare it with"
	case max(mine, m.of(theirs)) < level*min(mine, m.of(theirs)):
		text = fmt.Sprintf("level, %s and %s", say(ours), say(theirs))
	case m.better(mine, m.of(theirs)):
		text = fmt.Sprintf("%s wins, the best rival without loss is %s", say(ours), say(theirs))
	default:
		text = fmt.Sprintf("**a rival wins**: %s, before %s", say(theirs), say(ours))
	}
	bar := mine
	if theirs != nil && m.better(m.of(theirs), bar) {
		bar = m.of(theirs)
	}
	// What had its loss in a reload that gave up has no price to be named, and compares with nobody.
	priced := slices.DeleteFunc(slices.Clone(lossy), func(r *row) bool { return r.failed+r.delayed == 0 })
	if r := m.best(priced, false); r != nil && m.better(m.of(r), bar) {
		text += fmt.Sprintf("; better still, at the price of %s failed and %s delayed: %s", count(r.failed), count(r.delayed), say(r))
	}
	return text + "."
}

// count writes a number with separators.
func count(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', 3, 64) }

func ratio(v float64) string {
	if v == 0 {
		return "-"
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// short writes a duration with about three digits.
func short(d time.Duration) string {
	unit, name := time.Second, "s"
	switch {
	case d <= 0:
		return "-"
	case d < time.Millisecond:
		unit, name = time.Microsecond, "µs"
	case d < time.Second:
		unit, name = time.Millisecond, "ms"
	}
	v := float64(d) / float64(unit)
	digits := 0
	if v < 10 {
		digits = 2
	} else if v < 100 {
		digits = 1
	}
	return strconv.FormatFloat(v, 'f', digits, 64) + " " + name
}
