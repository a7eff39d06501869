package control

import (
	"encoding/json"
	"reflect"
	"syscall"
	"testing"
	"time"
)

// full has every field set, so that none is forgotten on the way.
var full = Settings{EnvFile: "/env", Listen: []string{":80"}, Health: []string{"/healthz"}, HealthCA: "/ca", HealthInsecure: true,
	StartTimeout: time.Second, StopDelay: 2 * time.Second, StopSignal: syscall.SIGQUIT, DrainTimeout: 3 * time.Second,
	Restart: "always", Hold: -1, Reuse: "off", PassSignals: []syscall.Signal{syscall.SIGHUP}}

func TestSettingsTravelWhole(t *testing.T) {
	v := reflect.ValueOf(full)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("the test leaves out %s", v.Type().Field(i).Name)
		}
	}
	data, err := json.Marshal(full)
	if err != nil {
		t.Fatal(err)
	}
	var got Settings
	if err := json.Unmarshal(data, &got); err != nil || !reflect.DeepEqual(got, full) {
		t.Errorf("%+v, %v, by way of %s", got, err, data)
	}
	if got := (Settings{}).With(full); !reflect.DeepEqual(got, full) {
		t.Errorf("laid over nothing: %+v", got)
	}
	if got := full.With(Settings{}); !reflect.DeepEqual(got, full) {
		t.Errorf("nothing laid over: %+v", got)
	}
}

func TestSettingsWith(t *testing.T) {
	got := full.With(Settings{Health: []string{"tcp"}, Hold: time.Second})
	want := full
	want.Health, want.HealthCA, want.HealthInsecure, want.Hold = []string{"tcp"}, "", false, time.Second
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, not %+v", got, want)
	}
	got = full.With(Settings{HealthInsecure: true})
	if want = full; got.HealthCA != "" || !reflect.DeepEqual(got.Health, want.Health) {
		t.Errorf("%+v: a file with certificates and no check of any exclude each other", got)
	}
}
