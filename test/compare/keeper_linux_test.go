package main

import (
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	line := "4711 (odd) name (x) S 12 4711 4711 0 -1 4194304 100 200 0 0 3 4 50 60 20 0 1 0 100 1000 10"
	p, ok := parseStat([]byte(line))
	want := stat{own: 70 * time.Millisecond, reaped: 1100 * time.Millisecond}
	if !ok || p != want {
		t.Errorf("got %+v, %v; want %+v", p, ok, want)
	}
	if _, ok := parseStat([]byte("4711 (gone")); ok {
		t.Error("a broken line was read")
	}
}
