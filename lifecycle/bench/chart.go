package bench

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
	"time"
)

// The pictures' measures, in SVG units. Time runs from left to right in both, so
// that they can be read as one.
const (
	chartWidth  = 1000
	plotLeft    = 76
	plotRight   = 992
	plotTop     = 26 // above it: switches
	heatHeight  = 330
	areaHeight  = 180
	belowPlot   = 48 // drain ends, time axis
	maxColumns  = 229
	maxLines    = 100 // marks that are drawn as lines; more are only ticks
	maxLabels   = 45  // generations that are named in their areas
	maxPatterns = 60  // generations that are told apart by pattern
	maxCrosses  = 60  // above areas
	labelHeight = 13
)

// heatColours are of one hue, from few to many. Their lightness falls steadily, so
// they can be told apart in grey, on paper and by colour-blind readers.
var heatColours = []string{"#a6cbe3", "#7fb2d5", "#5897c5", "#3a7ab2", "#215f9a", "#0f447c", "#072a57"}

// fills tell generations apart by colour (after Okabe and Ito, lightened so that
// text can be read on them) and by pattern: the first stands for no generation named.
var fills = []struct{ colour, lines string }{
	{"#d9d9d9", ""},
	{"#bfe0f5", ""},
	{"#f8d98d", "M0 8L8 0M-2 2L2 -2M6 10L10 6"},
	{"#a8dcc8", "M0 4H8"},
	{"#f3c3dd", "M0 0L8 8M-2 6L2 10M6 -2L10 2"},
	{"#f6f0a3", "M4 0V8"},
	{"#f5b999", "M2 2h2v2h-2zM6 6h2v2h-2z"},
}

var turns = [...]string{"#bfe0f5", "#5897c5"}

// chart draws one result. Columns are slots of the timeline, merged until they fit.
type chart struct {
	*Result
	columns []slot
	width   int64 // of a column, ns
	total   int64 // of the time axis, ns
	order   []uint16
}

func newChart(r *Result) *chart {
	merge := (len(r.line.slots) + maxColumns - 1) / maxColumns
	c := &chart{Result: r, width: r.line.width * int64(merge)}
	for part := range slices.Chunk(r.line.slots, merge) {
		var column slot
		for i := range part {
			column.absorb(&part[i])
		}
		c.columns = append(c.columns, column)
	}
	c.total = c.width * int64(len(c.columns))
	seen := make(map[uint16]bool)
	for i := range c.columns {
		for g := range c.columns[i].byGen {
			if !seen[g] {
				seen[g] = true
				c.order = append(c.order, g)
			}
		}
	}
	slices.SortFunc(c.order, func(a, b uint16) int {
		return compareGenerations(r.generations[a], r.generations[b])
	})
	return c
}

// x returns where a moment stands.
func (c *chart) x(ns int64) float64 {
	return plotLeft + (plotRight-plotLeft)*float64(ns)/float64(c.total)
}

// fillOf returns the number in fills of a generation.
func (c *chart) fillOf(generation uint16) int {
	if generation == 0 {
		return 0
	}
	if len(c.order) > maxPatterns { // too narrow for patterns: light and dark in turns
		return len(fills) + slices.Index(c.order, generation)%len(turns)
	}
	return 1 + slices.Index(c.order, generation)%(len(fills)-1)
}

// svg is a picture being drawn.
type svg struct{ strings.Builder }

func (s *svg) f(format string, args ...any) { fmt.Fprintf(s, format+"\n", args...) }

func (s *svg) open(height float64, title, description string) {
	s.f(`<svg viewBox="0 0 %d %.0f" role="img" aria-label="%s" xmlns="http://www.w3.org/2000/svg">`, chartWidth, height, html.EscapeString(title))
	s.f(`<title>%s</title><desc>%s</desc>`, html.EscapeString(title), html.EscapeString(description))
}

// cross draws the mark of a failure; the white below it keeps it apart from dark cells.
func (s *svg) cross(x, y, r float64) {
	d := fmt.Sprintf("M%.1f %.1fl%.1f %.1fm%.1f 0l%.1f %.1f", x-r, y-r, 2*r, 2*r, -2*r, 2*r, -2*r)
	s.f(`<path d="%s" stroke="#fff" stroke-width="%.1f" fill="none"/><path d="%s" stroke="#c00000" stroke-width="%.1f" fill="none"/>`, d, r*1.1, d, r/2)
}

// latencies draws the heat map.
func (c *chart) latencies() string {
	low, high := c.rowRange()
	bottom := float64(plotTop + heatHeight)
	height := heatHeight / float64(high-low)
	y := func(ns int64) float64 {
		row := 1 + rowsPerDecade*math.Log10(max(float64(ns), 1)/float64(lowestRow))
		return bottom - height*min(max(row-float64(low), 0), float64(high-low))
	}

	var s svg
	s.open(bottom+belowPlot, "Latency over time",
		fmt.Sprintf("%s. Half of the answers took up to %s, 99.9 of 100 up to %s, the longest %s.", c.Outcome(), short(c.Latency.P50), short(c.Latency.P999), short(c.Latency.Max)))
	for row := low; row <= high; row++ {
		if (row-1)%rowsPerDecade == 0 {
			at := bottom - height*float64(row-low)
			s.f(`<path d="M%d %.1fH%d" stroke="#999" stroke-width=".7"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`,
				plotLeft, at, plotRight, plotLeft-6, at+4.5, decade(row))
		}
	}
	c.cells(&s, low, bottom, height)
	c.axes(&s, bottom)
	c.drawMarks(&s, bottom)
	if retry := int64(time.Second); y(retry) > plotTop {
		s.f(`<path d="M%d %.1fH%d" stroke="#111" stroke-dasharray="2 4"/>`, plotLeft, y(retry), plotRight)
	}
	size := 4.5
	if len(c.Failures) > 200 {
		size = 2.5
	}
	for _, f := range c.Failures {
		s.cross(c.x(int64(f.Offset)), y(int64(f.Took)), size)
	}
	s.f(`</svg>`)
	return s.String()
}

// decade names the lower edge of a row that begins one.
func decade(row int) string {
	return [...]string{"10 µs", "100 µs", "1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s"}[(row-1)/rowsPerDecade]
}

// rowRange returns the rows to show: whole decades, with all latencies in them.
func (c *chart) rowRange() (low, high int) {
	low, high = rows, 0
	see := func(row int) { low, high = min(low, row), max(high, row+1) }
	for i := range c.columns {
		for row, n := range c.columns[i].began {
			if n > 0 {
				see(row)
			}
		}
	}
	for _, f := range c.Failures {
		see(rowOf(int64(f.Took)))
	}
	if low >= high {
		low, high = 1, 2
	}
	// Row 1 begins the first decade.
	low = 1 + (low-1)/rowsPerDecade*rowsPerDecade
	high = 1 + (high-1+rowsPerDecade-1)/rowsPerDecade*rowsPerDecade
	return low, max(high, low+rowsPerDecade)
}

// darkest returns the count of the fullest cell, at least 1.
func (c *chart) darkest() uint32 {
	most := uint32(1)
	for i := range c.columns {
		most = max(most, slices.Max(c.columns[i].began[:]))
	}
	return most
}

// cells draws the heat map's cells, one path for each colour.
func (c *chart) cells(s *svg, low int, bottom, height float64) {
	most := float64(c.darkest())
	width := (plotRight - plotLeft) / float64(len(c.columns))
	paths := make([]strings.Builder, len(heatColours))
	for i := range c.columns {
		for row, n := range c.columns[i].began {
			if n == 0 {
				continue
			}
			level := int(float64(len(heatColours)) * math.Log(float64(n)) / math.Log(most+1))
			fmt.Fprintf(&paths[min(level, len(paths)-1)], "M%.1f %.1fh%.1fv%.1fh%.1fz",
				plotLeft+width*float64(i), bottom-height*float64(max(row-low, 0)+1), width, height, -width)
		}
	}
	for level := range paths {
		if paths[level].Len() > 0 {
			s.f(`<path d="%s" fill="%s"/>`, paths[level].String(), heatColours[level])
		}
	}
}

// axes draws the frame and the axis of time.
func (c *chart) axes(s *svg, bottom float64) {
	s.f(`<path d="M%d %dV%.1fH%d" fill="none" stroke="#111"/>`, plotLeft, plotTop, bottom, plotRight)
	step := niceStep(float64(c.total) / 1e9 / 10)
	for i := 0; float64(i)*step*1e9 <= float64(c.total)*1.0001; i++ {
		x := c.x(int64(float64(i) * step * 1e9))
		anchor := "middle"
		if x > plotRight-20 {
			anchor = "end"
		}
		s.f(`<path d="M%.1f %.1fv5" stroke="#111"/><text x="%.1f" y="%.1f" text-anchor="%s">%.4g s</text>`, x, bottom, x, bottom+belowPlot-6, anchor, float64(i)*step)
	}
}

// niceStep returns the next of 1, 2, 5, 10, 20, … at or above v.
func niceStep(v float64) float64 {
	p := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5} {
		if m*p >= v*0.9999 {
			return m * p
		}
	}
	return 10 * p
}

// drawMarks draws switches (a triangle above, a line), drain ends (a diamond below, a
// dashed line) and handovers that failed (a square above).
func (c *chart) drawMarks(s *svg, bottom float64) {
	lines := len(c.Marks) <= maxLines
	for _, m := range c.Marks {
		x := c.x(int64(m.At.Sub(c.Started)))
		if x < plotLeft || x > plotRight {
			continue
		}
		line := func(style string) {
			if lines {
				s.f(`<path d="M%.1f %dV%.1f" stroke="#111" stroke-width=".9" stroke-opacity=".6" %s/>`, x, plotTop, bottom, style)
			}
		}
		label := ""
		if m.Generation > 0 {
			label = fmt.Sprint(m.Generation)
		}
		switch m.Kind {
		case Switch:
			if !lines {
				s.switchTick(x, plotTop)
				continue
			}
			line("")
			s.switchMark(x, plotTop)
			s.f(`<text x="%.1f" y="%d" text-anchor="middle">%s</text>`, x, plotTop-11, label)
		case Drained:
			if !lines {
				s.drainTick(x, bottom+3)
				continue
			}
			line(`stroke-dasharray="3 4"`)
			s.drainMark(x, bottom+7)
			s.f(`<text x="%.1f" y="%.1f" text-anchor="middle" font-size="11">%s</text>`, x, bottom+23, label)
		case NotSwitched:
			line(`stroke-dasharray="8 3"`)
			s.notSwitchedMark(x, plotTop-5)
			s.f(`<text x="%.1f" y="%d" text-anchor="middle">%s</text>`, x, plotTop-11, label)
		}
	}
}

func (s *svg) switchMark(x, y float64) {
	s.f(`<path d="M%.1f %.1fl-5 -9h10z" fill="#111"/>`, x, y)
}

func (s *svg) drainMark(x, y float64) {
	s.f(`<path d="M%.1f %.1fl4.5 5.5l-4.5 5.5l-4.5 -5.5z" fill="#fff" stroke="#111" stroke-width="1.4"/>`, x, y-5.5)
}

func (s *svg) switchTick(x, y float64) {
	s.f(`<path d="M%.1f %.1fv-8" stroke="#111"/>`, x, y)
}

func (s *svg) drainTick(x, y float64) {
	s.f(`<path d="M%.1f %.1fv8" stroke="#111" stroke-dasharray="2 1"/>`, x, y)
}

func (s *svg) notSwitchedMark(x, y float64) {
	s.f(`<path d="M%.1f %.1fh8v8h-8zl8 8m0 -8l-8 8" fill="#fff" stroke="#c00000" stroke-width="1.6"/>`, x-4, y-4)
}

// throughput draws what each generation answered, one above the other, and failures on
// top.
func (c *chart) throughput() string {
	bottom := float64(plotTop + areaHeight)
	most := int64(1)
	for i := range c.columns {
		most = max(most, c.columns[i].ended+c.columns[i].failed)
	}
	perSecond := 1e9 / float64(c.width)
	step := niceStep(float64(most) * perSecond / 4)
	top := step * math.Ceil(float64(most)*perSecond/step)
	scale := areaHeight / top * perSecond // of one request in a column

	var s svg
	s.open(bottom+belowPlot, "Answers a second, by generation",
		fmt.Sprintf("%s answers a second on average, from %s.", count(int64(c.PerSecond)), plural(int64(len(c.order)), "generation")))
	c.patterns(&s)
	for v := step; v <= top*1.0001; v += step {
		y := bottom - areaHeight*v/top
		s.f(`<path d="M%d %.1fH%d" stroke="#999" stroke-width=".7"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`,
			plotLeft, y, plotRight, plotLeft-6, y+4.5, count(int64(v)))
	}
	width := (plotRight - plotLeft) / float64(len(c.columns))
	base := make([]float64, len(c.columns)) // height reached so far
	labels := len(c.order) <= maxLabels
	for _, g := range c.order {
		c.area(&s, g, base, bottom, width, scale, labels)
	}
	failing := 0
	for i := range c.columns {
		if c.columns[i].failed > 0 {
			failing++
		}
	}
	for i := range c.columns {
		if n := c.columns[i].failed; n > 0 {
			h := max(float64(n)*scale, 3)
			x, y := plotLeft+width*float64(i), max(bottom-base[i]-h, plotTop)
			s.f(`<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="#c00000"/>`, x, y, width, h)
			if failing <= maxCrosses {
				s.cross(x+width/2, max(y-7, plotTop+6), 4)
			}
		}
	}
	c.axes(&s, bottom)
	c.drawMarks(&s, bottom)
	s.f(`</svg>`)
	return s.String()
}

// area draws one generation on top of base, and adds it to base.
func (c *chart) area(s *svg, g uint16, base []float64, bottom, width, scale float64, label bool) {
	var path strings.Builder
	var centre, weight, tallest, middle float64
	for i := range c.columns {
		n := c.columns[i].byGen[g]
		if n == 0 {
			continue
		}
		h := float64(n) * scale
		x := plotLeft + width*float64(i)
		fmt.Fprintf(&path, "M%.1f %.1fh%.1fv%.1fh%.1fz", x, bottom-base[i], width, -h, -width)
		centre += float64(n) * (x + width/2)
		weight += float64(n)
		if h > tallest {
			tallest, middle = h, bottom-base[i]-h/2
		}
		base[i] += h
	}
	s.f(`<path d="%s" fill="url(#fill%d)"/>`, path.String(), c.fillOf(g))
	if name := c.generations[g]; label && name != "" && tallest > labelHeight+4 {
		x := centre / weight
		w := 7.5*float64(len(name)) + 6
		s.f(`<rect x="%.1f" y="%.1f" width="%.1f" height="18" rx="3" fill="#fff" fill-opacity=".85"/><text x="%.1f" y="%.1f" text-anchor="middle">%s</text>`,
			x-w/2, middle-9, w, x, middle+4.5, html.EscapeString(name))
	}
}

func (c *chart) patterns(s *svg) {
	s.f(`<defs>`)
	for i, f := range fills {
		s.f(`<pattern id="fill%d" width="8" height="8" patternUnits="userSpaceOnUse"><path d="M0 0h8v8h-8z" fill="%s"/><path d="%s" stroke="#555" stroke-width="1" fill="none"/></pattern>`, i, f.colour, f.lines)
	}
	for i, colour := range turns {
		s.f(`<pattern id="fill%d" width="8" height="8" patternUnits="userSpaceOnUse"><path d="M0 0h8v8h-8z" fill="%s"/></pattern>`, len(fills)+i, colour)
	}
	s.f(`</defs>`)
}

// legend explains the marks of both pictures.
func (c *chart) legend() string {
	var s svg
	s.open(30, "Marks", "What the marks of both pictures mean")
	x := 12.0
	entry := func(width float64, text string, draw func()) {
		draw()
		s.f(`<text x="%.1f" y="19">%s</text>`, x+12, text)
		x += width
	}
	if len(c.Marks) <= maxLines {
		entry(190, "switch, and to which", func() { s.switchMark(x, 19) })
		entry(210, "an old one has drained", func() { s.drainMark(x, 15) })
	} else {
		entry(190, "above: a switch", func() { s.switchTick(x, 19) })
		entry(210, "below: an old one has drained", func() { s.drainTick(x, 11) })
	}
	entry(170, "failed handover", func() { s.notSwitchedMark(x, 15) })
	entry(150, "failed request", func() { s.cross(x, 15, 4.5) })
	entry(200, "1 s: a lost SYN is sent again", func() {
		s.f(`<path d="M%.1f 15h24" stroke="#111" stroke-dasharray="2 4"/>`, x-12)
		x += 8
	})
	s.f(`</svg>`)
	return s.String()
}
