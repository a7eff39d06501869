package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	urfave "github.com/urfave/cli/v2"

	"overlap/lifecycle/process"
)

func (p *program) statusCommand() *urfave.Command {
	return &urfave.Command{
		Name:      "status",
		Usage:     "show the generations of a service",
		UsageText: "overlap status [flags] [NAME]",
		Description: "Exits with 0 only when a generation serves, so it can be a container's health check, and\n" +
			"with 3 when nothing runs.",
		Flags: withEnvironment([]urfave.Flag{
			&urfave.BoolFlag{Name: "json", Usage: "print JSON"},
		}, "status"),
		Action: p.status,
	}
}

func (p *program) status(c *urfave.Context) error {
	name, err := oneName(c, afterDashes(c.Args().Slice()))
	if err != nil {
		return err
	}
	p.counts = true
	s, err := p.service(c.Context, "status", name)
	if err != nil {
		if c.Bool("json") && errors.Is(err, errNotRunning) {
			p.print(shownStatus{Service: name, Generations: []shownGeneration{}})
		}
		return err
	}
	defer s.close()
	if c.Bool("json") {
		err = p.print(shown(s))
	} else {
		err = p.table(s)
	}
	if err != nil {
		return err
	}
	if !s.serves() {
		return &failure{"status of " + s.name, s.name, errNotServing}
	}
	return nil
}

// afterDashes lets "--" end the flags.
func afterDashes(args []string) []string {
	before, after := splitCommand(args)
	return append(before[:len(before):len(before)], after...)
}

// shownStatus is the JSON of status.
type shownStatus struct {
	Service     string            `json:"service"`
	Generations []shownGeneration `json:"generations"`
}

type shownGeneration struct {
	Generation  int        `json:"generation"`
	PID         int        `json:"pid"`
	State       string     `json:"state"`
	Listeners   []string   `json:"listeners"`
	Connections *int       `json:"connections"` // null where nobody can count them
	Started     *time.Time `json:"started"`
	Switched    *time.Time `json:"switched"`        // null until it served
	Owner       int        `json:"owner,omitempty"` // the launcher's pid, where there is one
	Note        string     `json:"note,omitempty"`  // why not everything is known
}

func shown(s *service) shownStatus {
	out := shownStatus{Service: s.name, Generations: []shownGeneration{}}
	for _, g := range s.generations {
		one := shownGeneration{Generation: g.Generation.Generation, PID: g.PID, State: string(g.State), Listeners: g.Listeners,
			Started: whenKnown(g.Started), Switched: whenKnown(g.Switched), Owner: g.Owner, Note: g.note}
		if g.counted() {
			one.Connections = &g.Connections
		}
		if one.Listeners == nil {
			one.Listeners = []string{}
		}
		out.Generations = append(out.Generations, one)
	}
	return out
}

// counted reports whether the number of connections is known: who owns a generation counts them.
func (g *generation) counted() bool { return g.note == "" }

func whenKnown(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func (p *program) table(s *service) error {
	w := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "SERVICE\tGENERATION\tPID\tSTATE\tAGE\tADDRESSES\tCONNECTIONS\n")
	for _, g := range s.generations {
		label := string(g.State)
		connections := "?"
		if g.counted() {
			connections = strconv.Itoa(g.Connections)
		}
		if g.note != "" {
			label += " (" + g.note + ")"
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%s\t%s\n", s.name, g.Generation.Generation, g.PID, process.Printable(label),
			age(time.Since(g.Started), g.Started.IsZero()), process.Printable(strings.Join(g.Listeners, ", ")), connections)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the table: %w", err)
	}
	return nil
}

// age is short: the largest unit.
func age(d time.Duration, unknown bool) string {
	switch {
	case unknown:
		return "?"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(max(d, 0).Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
