package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"overlap/lifecycle/control"
	"overlap/lifecycle/owner"
	"overlap/lifecycle/state"
)

// answerTime is how long an owner may take to say how it is.
const answerTime = time.Second

// service is a service of which at least one generation lives.
type service struct {
	root, name  string
	dir         *state.Dir
	generations []generation // that live, newest first
}

// generation is one that lives.
type generation struct {
	control.Generation
	note   string // why not everything is known; "" for one that answered
	record *state.Record
}

// Notes of a generation.
const (
	noteNoAnswer   = "no answer"
	noteNoLauncher = "no launcher"
)

func (s *service) close() {
	if s.dir != nil {
		s.dir.Close()
	}
}

func (s *service) client(g generation) *control.Client {
	return control.DialUser(s.dir.SocketPath(g.Generation.Generation), s.dir.UID())
}

// serving is the newest generation that serves, or whose program is about to be started again, and
// that answers.
func (s *service) serving() (generation, error) {
	var err error = errNotServing
	for _, g := range s.generations {
		if g.State != state.Serving && !g.Holding {
			continue
		}
		switch g.note {
		case "":
			return g, nil
		case noteNoLauncher:
			err = fmt.Errorf("generation %d (pid %d): %w", g.Generation.Generation, g.PID, errNoLauncher)
		default:
			err = fmt.Errorf("generation %d (pid %d): %w", g.Generation.Generation, g.PID, errNoAnswer)
		}
	}
	return generation{}, err
}

// serves reports whether clients are served: a program without launcher counts.
func (s *service) serves() bool {
	return slices.ContainsFunc(s.generations, func(g generation) bool {
		return g.State == state.Serving && g.note != noteNoAnswer
	})
}

// roots are the state directories to look into, others' where the own ones have nothing.
func (p *program) roots() (own, others []string) {
	if p.stateDir != "" {
		return []string{p.stateDir}, nil
	}
	return state.Roots()
}

// service finds the one that is meant; "" is the only one that runs. Root's own come first: what another
// user calls a service must not keep root from its own.
func (p *program) service(ctx context.Context, command, name string) (*service, error) {
	found, err := p.services(ctx, name)
	if err != nil {
		return nil, err
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		if name == "" {
			return nil, &failure{command, "", fmt.Errorf("no service: %w", errNotRunning)}
		}
		return nil, &failure{command, name, fmt.Errorf("%s: %w", name, errNotRunning)}
	}
	e := &ambiguousError{command: command, name: name}
	for _, s := range found {
		s.close()
		if name == "" {
			e.choices = append(e.choices, s.name)
		} else {
			e.choices = append(e.choices, s.root)
		}
	}
	if slices.Sort(e.choices); name == "" {
		e.choices = slices.Compact(e.choices)
		if len(e.choices) == 1 { // one name in several places
			return p.service(ctx, command, e.choices[0])
		}
	}
	return nil, &failure{command, name, e}
}

// services are those that run, of one name or of any: the caller's own, or where there are none, others'.
func (p *program) services(ctx context.Context, name string) ([]*service, error) {
	own, others := p.roots()
	found, err := p.servicesIn(ctx, own, name)
	if err != nil || len(found) > 0 {
		return found, err
	}
	if found, err = p.servicesIn(ctx, others, name); err != nil {
		p.warn(err) // what others put there makes nothing fail
	}
	return found, nil
}

func (p *program) servicesIn(ctx context.Context, roots []string, name string) ([]*service, error) {
	var found []*service
	var failed error
	for _, root := range roots {
		names := []string{name}
		if name == "" {
			var err error
			if names, err = state.Services(root); err != nil {
				failed = errors.Join(failed, err)
			}
		}
		for _, n := range names {
			s, err := p.look(ctx, root, n)
			switch {
			case err != nil:
				failed = errors.Join(failed, err)
			case len(s.generations) > 0:
				found = append(found, s)
			default:
				s.close()
			}
		}
	}
	if failed != nil && len(found) == 0 {
		return nil, failed
	}
	if failed != nil {
		p.warn(failed)
	}
	return found, nil
}

// look finds out which generations of a service live. A service that is not there has none.
func (p *program) look(ctx context.Context, root, name string) (*service, error) {
	s := &service{root: root, name: name}
	dir, err := state.Find(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	s.dir = dir
	numbers, err := numbersIn(dir)
	if err != nil {
		dir.Close()
		return nil, err
	}
	all := make([]*generation, len(numbers))
	broken := make([]error, len(numbers))
	var asking sync.WaitGroup
	for i, n := range numbers {
		asking.Go(func() { all[i], broken[i] = p.examine(ctx, dir, n) })
	}
	asking.Wait()
	for i, g := range all {
		if broken[i] != nil {
			p.warn(broken[i])
		}
		if g != nil {
			s.generations = append(s.generations, *g)
		}
	}
	return s, nil
}

// numbersIn are the generations that have a lock or a record, newest first. A record that
// cannot be read must not hide a generation that lives.
func numbersIn(dir *state.Dir) ([]int, error) {
	entries, err := os.ReadDir(dir.Path())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var numbers []int
	for _, e := range entries {
		base, isLock := strings.CutSuffix(e.Name(), ".lock")
		if !isLock {
			var isRecord bool
			if base, isRecord = strings.CutSuffix(e.Name(), ".json"); !isRecord {
				continue
			}
		}
		if n, err := strconv.Atoi(base); err == nil && n > 0 {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	numbers = slices.Compact(numbers)
	slices.Reverse(numbers)
	return numbers, nil
}

// examine finds out about one generation; nil is one that does not live. The error is about
// its record.
func (p *program) examine(ctx context.Context, dir *state.Dir, n int) (*generation, error) {
	var known *state.Record
	record, err := dir.Read(n)
	if err == nil {
		known = &record
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if !dir.Owned(n) {
		if known == nil || !owner.Orphan(record) {
			return nil, err
		}
		return fromRecord(record, noteNoLauncher), err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	client := control.DialUser(dir.SocketPath(n), dir.UID())
	ask := client.Brief
	if p.counts {
		ask = client.Status
	}
	status, asked := ask(ctx)
	switch {
	case asked == nil && len(status.Generations) > 0:
		g := &generation{Generation: status.Generations[0], record: known}
		if g.State == state.Ended {
			return nil, err
		}
		return g, err
	case !dir.Owned(n), known != nil && record.State == state.Ended:
		return nil, err // it ended meanwhile
	case known != nil && record.State == state.Starting:
		return fromRecord(record, ""), err // its socket comes later
	case known != nil:
		return fromRecord(record, noteNoAnswer), err
	case err != nil:
		g := &generation{note: noteNoAnswer}
		g.Generation.Generation, g.State = n, "unknown"
		return g, err
	}
	return nil, nil // it has just begun, or just ended
}

func fromRecord(r state.Record, note string) *generation {
	g := &generation{note: note, record: &r}
	g.Generation = control.Generation{Generation: r.Generation, PID: r.Owner.PID, State: r.State,
		Started: r.Started, Switched: r.Switched, Command: r.Command}
	if r.Launched {
		g.Owner, g.PID = r.Owner.PID, 0
		if r.Program != nil {
			g.PID = r.Program.PID
		}
	}
	for _, l := range r.Listeners {
		if l.Network == "tcp" {
			g.Listeners = append(g.Listeners, l.Address)
		} else {
			g.Listeners = append(g.Listeners, l.Network+":"+l.Address)
		}
	}
	return g
}
