package main

import (
	"fmt"
	"html"
	"math"
	"strings"
	"time"

	"overlap/lifecycle/bench"
)

// The picture's measures, in SVG units: a line for each rival, a panel for each measure.
const (
	pictureWidth = 1180
	nameWidth    = 360 // the names, at the left
	panelGap     = 34
	lineHeight   = 34
	headHeight   = 118
	footHeight   = 64
	valueWidth   = 62 // beside the last mark
)

// panel is one measure over all rivals.
type panel struct {
	title, unit string
	of          func(*row) float64
	known       func(*row) bool
	ticks       []float64
	tick, text  func(float64) string
	at          func(v float64) float64 // place between 0 and 1
}

// shapes tell the modes apart by form as well as by colour (Okabe and Ito's, safe for colour-blind
// readers).
var shapes = map[bench.Mode]struct{ colour, name string }{
	bench.Close:     {"#0072b2", "a connection for each request"},
	bench.KeepAlive: {"#d55e00", "keep-alive"},
	bench.Both:      {"#111111", "both"},
}

// panels fits the axes to the rows.
func (p *report) panels() []panel {
	loss := panel{title: "Failed requests", unit: "for each handover", of: (*row).aHandover,
		known: func(r *row) bool { return r.handovers > 0 }, tick: number, text: func(v float64) string {
			if v == 0 {
				return "0"
			}
			return strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0")
		}}
	loss.ticks = []float64{0, 1}
	for most := p.most(loss.of); loss.ticks[len(loss.ticks)-1] < most; {
		loss.ticks = append(loss.ticks, 10*loss.ticks[len(loss.ticks)-1])
	}
	top := math.Log10(1 + 10*loss.ticks[len(loss.ticks)-1])
	loss.at = func(v float64) float64 { return math.Log10(1+10*v) / top }
	return []panel{
		loss,
		p.logarithmic("p99.9 near a switch", "of answered requests", func(r *row) time.Duration { return r.near }),
		p.logarithmic("Time to the switch", "median, start of the process included", func(r *row) time.Duration { return r.switched }),
	}
}

// most is the largest value of all rows.
func (p *report) most(of func(*row) float64) float64 {
	most := 0.0
	for _, r := range p.rows {
		most = max(most, of(r))
	}
	return most
}

// logarithmic is a panel of times, over whole decades.
func (p *report) logarithmic(title, unit string, of func(*row) time.Duration) panel {
	low, high := math.Inf(1), 0.0
	for _, r := range p.rows {
		if v := float64(of(r)); v > 0 {
			low, high = min(low, v), max(high, v)
		}
	}
	if high == 0 {
		low, high = float64(time.Millisecond), float64(time.Second)
	}
	first, last := math.Floor(math.Log10(low)), math.Ceil(math.Log10(high))
	last = max(last, first+1)
	d := panel{title: title, unit: unit, of: duration(of), known: func(r *row) bool { return of(r) > 0 }, text: shortFloat,
		at: func(v float64) float64 { return (math.Log10(v) - first) / (last - first) }}
	d.tick = func(v float64) string {
		for _, unit := range []time.Duration{time.Second, time.Millisecond, time.Microsecond} {
			if n := v / float64(unit); n >= 0.999 {
				return fmt.Sprintf("%.0f %s", n, strings.TrimPrefix(strings.Trim(unit.String(), "1"), " "))
			}
		}
		return fmt.Sprintf("%.0f ns", v)
	}
	for e := first; e <= last; e++ {
		d.ticks = append(d.ticks, math.Pow(10, e))
	}
	return d
}

// svg is a picture being drawn.
type svg struct{ strings.Builder }

func (s *svg) f(format string, args ...any) { fmt.Fprintf(s, format+"\n", args...) }

func (s *svg) text(x, y float64, attributes, text string) {
	s.f(`<text x="%.1f" y="%.1f" %s>%s</text>`, x, y, attributes, html.EscapeString(text))
}

// mark draws a value: a filled circle, or a hollow diamond.
func (s *svg) mark(mode bench.Mode, x, y float64) {
	if mode == bench.KeepAlive {
		s.f(`<path d="M%.1f %.1fl6 6l-6 6l-6 -6z" fill="#fff" stroke="%s" stroke-width="2"/>`, x, y-6, shapes[mode].colour)
		return
	}
	s.f(`<circle cx="%.1f" cy="%.1f" r="5" fill="%s"/>`, x, y, shapes[mode].colour)
}

// picture draws the table's main columns.
func (p *report) picture() string {
	var measured []*rival
	for _, r := range p.rivals {
		for _, mode := range p.modes {
			if w := p.find(r.key, mode); w != nil && w.measured() {
				measured = append(measured, r)
				break
			}
		}
	}
	bottom := float64(headHeight + lineHeight*len(measured))
	height := bottom + footHeight
	var s svg
	s.f(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %.0f" width="%d" height="%.0f" role="img" font-family="Helvetica, Arial, 'DejaVu Sans', sans-serif" font-size="13" fill="#111">`,
		pictureWidth, height, pictureWidth, height)
	s.f(`<title>What clients notice of a restart</title><desc>%s</desc>`, html.EscapeString(p.describeResults(measured)))
	s.f(`<rect width="%d" height="%.0f" fill="#fff"/>`, pictureWidth, height)
	s.text(12, 26, `font-size="18" font-weight="bold"`, "What clients notice when a server is replaced under load")
	s.legend(p.modes)
	for i, r := range measured {
		y := float64(headHeight + lineHeight*i)
		weight := "normal"
		if r.ours {
			s.f(`<rect x="0" y="%.1f" width="%d" height="%d" fill="#e8f1f8"/>`, y, pictureWidth, lineHeight)
			weight = "bold"
		}
		s.f(`<path d="M0 %.1fH%d" stroke="#ddd"/>`, y, pictureWidth)
		s.text(12, y+lineHeight/2+5, fmt.Sprintf(`font-weight="%s"%s`, weight, squeeze(r.title)), r.title)
	}
	panels := p.panels()
	width := float64(pictureWidth-nameWidth-panelGap*(len(panels)-1)-12) / float64(len(panels))
	for i, d := range panels {
		left := nameWidth + float64(i)*(width+panelGap)
		p.draw(&s, d, measured, left+8, left+width-valueWidth, bottom)
	}
	s.text(12, height-12, `font-size="11" fill="#444"`, p.footer())
	s.f(`</svg>`)
	return s.String()
}

// squeeze keeps a long name inside its column.
func squeeze(title string) string {
	if len([]rune(title)) > 38 {
		return fmt.Sprintf(` textLength="%d" lengthAdjust="spacingAndGlyphs"`, nameWidth-24)
	}
	return ""
}

func (s *svg) legend(modes []bench.Mode) {
	x := 18.0
	for _, mode := range modes {
		s.mark(mode, x, 46)
		s.text(x+11, 51, "", shapes[mode].name)
		x += 40 + 6.2*float64(len(shapes[mode].name))
	}
}

// draw draws one panel from left to right.
func (p *report) draw(s *svg, d panel, measured []*rival, left, right, bottom float64) {
	s.text(left-8, headHeight-44, `font-weight="bold"`, d.title)
	s.text(left-8, headHeight-28, `font-size="11" fill="#444"`, d.unit)
	for _, tick := range d.ticks {
		x := left + d.at(tick)*(right-left)
		s.f(`<path d="M%.1f %dV%.1f" stroke="#bbb" stroke-width=".8"/>`, x, headHeight-4, bottom)
		s.text(x, headHeight-9, `text-anchor="middle" font-size="11"`, d.tick(tick))
		s.text(x, bottom+15, `text-anchor="middle" font-size="11"`, d.tick(tick))
	}
	s.f(`<path d="M%.1f %.1fH%.1f" stroke="#111"/>`, left-8, bottom, right+valueWidth)
	for i, r := range measured {
		middle := float64(headHeight + lineHeight*i + lineHeight/2)
		for j, mode := range p.modes {
			w := p.find(r.key, mode)
			if w == nil || !w.measured() || !d.known(w) {
				continue
			}
			y := middle
			if len(p.modes) > 1 {
				y += float64(2*j-1) * 7
			}
			x := left + d.at(d.of(w))*(right-left)
			s.mark(mode, x, y)
			s.text(x+9, y+4, fmt.Sprintf(`font-size="11" fill="%s"`, shapes[mode].colour), d.text(d.of(w)))
		}
	}
}

// describeResults is the picture in words.
func (p *report) describeResults(measured []*rival) string {
	var list []string
	for _, r := range measured {
		for _, mode := range p.modes {
			if w := p.find(r.key, mode); w != nil && w.measured() {
				list = append(list, fmt.Sprintf("%s, %s: %s failed in %s handovers, switched after %s", r.title, shapes[mode].name, count(w.failed), count(int64(w.handovers)), short(w.switched)))
			}
		}
	}
	return strings.Join(list, ". ")
}

// footer says what the numbers stand on.
func (p *report) footer() string {
	return fmt.Sprintf("%s; %s; %s. %d clients, closed loop; %s of %s in each mode, medians. go run ./test/compare", p.began.Format("2006-01-02"),
		p.place.machine, p.place.kernel, p.clients, plural(p.rounds, "round"), plural(p.reloads, "reload"))
}
