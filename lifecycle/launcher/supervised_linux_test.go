package launcher

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"overlap/lifecycle/control"
)

// supervisor answers as a launcher that must not exit.
type supervisor struct {
	takes []string
	got   chan control.ReloadRequest
}

func (s *supervisor) Status(context.Context, bool) (control.Status, error) {
	return control.Status{Takes: s.takes}, nil
}

func (s *supervisor) Reload(_ context.Context, r control.ReloadRequest, events func(control.Event)) {
	s.got <- r
	events(control.Event{Final: true, Outcome: &control.Outcome{Outcome: control.OutcomeSwitched}})
}

func (s *supervisor) Stop(context.Context, control.StopRequest, func(control.Event)) {}
func (s *supervisor) Session(context.Context, *control.Session)                      {}

// What a launcher was told is asked for in full, or not at all.
func TestRequest(t *testing.T) {
	t.Chdir(t.TempDir()) // and $PWD
	given := Settings{EnvFile: "env", HealthCA: "/ca", Health: []string{"/healthz"}, StartTimeout: -1, Hold: time.Second}
	ask := func(takes []string, given Settings) (*control.ReloadRequest, error) {
		t.Helper()
		s := &supervisor{takes, make(chan control.ReloadRequest, 1)}
		path := filepath.Join(t.TempDir(), "1.sock")
		server, err := control.Serve(path, s, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close(t.Context())
		l := &launcher{opt: Options{Command: []string{"server"}}, dir: "/dir", env: []string{"A=b"},
			set: &settings{given: given, Settings: Settings{StartTimeout: forever}}, log: slog.New(slog.DiscardHandler)}
		err = l.request(t.Context(), control.Dial(path))
		select {
		case r := <-s.got:
			return &r, err
		default:
			return nil, err
		}
	}
	r, err := ask([]string{control.TakesSettings}, given)
	if err != nil {
		t.Fatal(err)
	}
	want := given
	want.EnvFile = filepath.Join(mustWorkingDirectory(t), "env")
	if !reflect.DeepEqual(*r, control.ReloadRequest{Command: []string{"server"}, Directory: "/dir", Env: []string{"A=b"},
		Settings: &want, Timeout: forever}) {
		t.Errorf("asked for %+v", r)
	}
	if r, err := ask(nil, given); r != nil || !errors.Is(err, ErrOldLauncher) {
		t.Errorf("an older launcher was asked for %+v, %v", r, err)
	}
	if r, err := ask(nil, Settings{}); err != nil || r.Settings != nil || r.Timeout != 0 {
		t.Errorf("without flags an older launcher was asked for %+v, %v", r, err)
	}
}

func mustWorkingDirectory(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
