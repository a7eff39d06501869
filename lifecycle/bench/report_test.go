package bench

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// fakeRun makes the account of a run that never was: n handovers in d, some failures.
func fakeRun(n int, d time.Duration, failures bool) *Result {
	rng := rand.New(rand.NewPCG(1, 2))
	base := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	marks := &Marks{}
	l, _ := Load{Address: "127.0.0.1:8080", Body: []byte("x"), Path: "/echo"}.withDefaults()
	r := &run{Load: l, base: base, stopping: make(chan struct{}), generations: []string{""}}
	c := newClient(r, 0)
	each := int64(d) / int64(n+1)
	for i := range n {
		at := base.Add(time.Duration(int64(i+1) * each))
		marks.Add(Mark{Switch, i + 2, at})
		marks.Add(Mark{Drained, i + 1, at.Add(time.Duration(each / 4))})
	}
	for i := range n + 1 {
		r.generations = append(r.generations, fmt.Sprint(i+1))
	}
	t := newTally(r, []*client{c}, marks)
	step := max(int64(d)/50000, int64(200*time.Microsecond))
	for at := int64(0); at < int64(d); at += step {
		took := int64(float64(300*time.Microsecond) * math.Exp(rng.NormFloat64()*0.5))
		g := at / each
		s := sample{start: at, end: at + took, mode: []Mode{Close, KeepAlive}[at/step%2], generation: uint16(g + 1)}
		if since := at - g*each; g > 0 && since < int64(40*time.Millisecond) {
			s.end += rng.Int64N(int64(3 * time.Millisecond))
			if rng.IntN(3) == 0 {
				s.generation--
			}
			if failures && rng.IntN(60) == 0 {
				s.cause = []Cause{Refused, Reset, EOF}[rng.IntN(3)]
				c.failures = append(c.failures, Failure{At: base.Add(time.Duration(s.end)), Offset: time.Duration(s.start), Took: time.Duration(s.end - s.start), Cause: s.cause, Mode: s.mode, Error: "read answer: <connection> " + s.cause.String()})
			} else if failures && rng.IntN(200) == 0 {
				s.end, s.delayed = s.start+int64(time.Second)+took, true
			}
		}
		c.samples = append(c.samples, s)
	}
	r.stopAt = int64(d)
	r.stopOnce.Do(func() {})
	t.collect()
	t.settle(math.MaxInt64)
	return t.result()
}

func TestReport(t *testing.T) {
	t.Parallel()
	outside := regexp.MustCompile(`(?i)<script|<link|@import|src=|href=|url\(([^#])`)
	for name, r := range map[string]*Result{
		"clean":   fakeRun(12, 10*time.Second, false),
		"default": fakeRun(40, 20*time.Second, true),
		"failed":  fakeRun(12, 10*time.Second, true),
		"long":    fakeRun(200, 100*time.Second, true),
		"none":    fakeRun(1, time.Millisecond, false),
		"nothing": {},
	} {
		var page strings.Builder
		if err := r.Report(&page); err != nil {
			t.Fatal(err)
		}
		if dir := os.Getenv("BENCH_TEST_REPORTS"); dir != "" {
			os.WriteFile(dir+"/"+name+".html", []byte(page.String()), 0o644)
			os.WriteFile(dir+"/"+name+".txt", []byte(r.Outcome()+"\n\n"+r.Table()), 0o644)
		}
		if found := outside.FindString(page.String()); found != "" {
			t.Errorf("%s: the page needs something else: %q", name, found)
		}
		if strings.Contains(page.String(), "<connection>") {
			t.Errorf("%s: an error's text is not escaped", name)
		}
		if !strings.Contains(page.String(), r.Outcome()) {
			t.Errorf("%s: the outcome %q is missing", name, r.Outcome())
		}
		if strings.Contains(page.String(), "NaN") || strings.Contains(page.String(), "Inf") {
			t.Errorf("%s: a place that is no number", name)
		}
		if limit := 1 << 20; page.Len() > limit {
			t.Errorf("%s: %d bytes", name, page.Len())
		}
	}
}
