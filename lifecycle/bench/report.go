package bench

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"runtime"
	"time"
)

//go:embed report.html
var reportHTML string

var reportTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"short": short,
	"count": count,
}).Parse(reportHTML))

// maxReportFailures bounds the table of failures in the report.
const maxReportFailures = 100

// Report writes the account as one HTML page that needs nothing else: no script, no
// style sheet, no font, no network.
func (r *Result) Report(w io.Writer) error {
	data := struct {
		*Result
		Facts       [][3]string
		Rows        []latencyRow
		Generations []GenerationResult
		Latencies   template.HTML
		Throughput  template.HTML
		Legend      template.HTML
		Load        string
		Machine     string
		Darkest     int64
		Shown       []failureRow
		Hidden      int64
	}{
		Result:      r,
		Facts:       r.facts(),
		Rows:        r.latencyRows(),
		Generations: r.generationRows(maxTableGenerations),
		Load:        r.loadInWords(),
		Machine:     fmt.Sprintf("%s/%s, %d CPUs", runtime.GOOS, runtime.GOARCH, runtime.NumCPU()),
		Shown:       r.failureRows(maxReportFailures),
	}
	data.Hidden = r.Failed - r.Unsent - int64(len(data.Shown))
	if len(r.line.slots) > 0 {
		c := newChart(r)
		data.Darkest = int64(c.darkest())
		data.Latencies = template.HTML(c.latencies())
		data.Throughput = template.HTML(c.throughput())
		data.Legend = template.HTML(c.legend())
	}
	if err := reportTemplate.Execute(w, data); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// loadInWords says what load was made.
func (r *Result) loadInWords() string {
	loop := ""
	if r.Rate > 0 {
		loop = fmt.Sprintf(", %g requests a second (latency counts from when a request was due)", r.Rate)
	}
	mode := "a connection for each request and keep-alive, half the clients each"
	switch r.Mode {
	case Close:
		mode = "a connection for each request"
	case KeepAlive:
		mode = "keep-alive"
	case datagrams:
		mode = "UDP"
	}
	return fmt.Sprintf("%s; %s; %s%s; %.4g s", r.Request, plural(int64(r.Clients), "client"), mode, loop, r.Elapsed.Seconds())
}

// failureRow is a failure as the report lists it.
type failureRow struct {
	Failure
	Near string // where it was beside the nearest switch
}

func (r *Result) failureRows(limit int) []failureRow {
	rows := make([]failureRow, 0, min(limit, len(r.Failures)))
	for _, f := range r.Failures {
		if len(rows) == limit {
			break
		}
		row := failureRow{Failure: f, Near: "-"}
		var nearest time.Duration
		for _, m := range r.Marks {
			d := f.At.Sub(m.At)
			if m.Kind == Switch && (row.Near == "-" || d.Abs() < nearest.Abs()) {
				nearest = d
				row.Near = short(d.Abs()) + " after the switch"
				if d < 0 {
					row.Near = short(d.Abs()) + " before the switch"
				}
				if m.Generation > 0 {
					row.Near += fmt.Sprintf(" to %d", m.Generation)
				}
			}
		}
		rows = append(rows, row)
	}
	return rows
}
