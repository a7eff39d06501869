package main

import (
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	line := "4711 (odd) name (x) S 12 4711 4711 0 -1 4194304 100 200 0 0 3 4 50 60 20 0 1 0 100 1000 10"
	p, ok := parseStat([]byte(line))
	want := process{parent: 12, own: 70 * time.Millisecond, reaped: 1100 * time.Millisecond}
	if !ok || p != want {
		t.Errorf("got %+v, %v; want %+v", p, ok, want)
	}
	if _, ok := parseStat([]byte("4711 (gone")); ok {
		t.Error("a broken line was read")
	}
	all := map[int]process{2: {parent: 1}, 3: {parent: 2}, 4: {parent: 3}, 9: {parent: 8}}
	for pid, want := range map[int]bool{2: false, 3: true, 4: true, 9: false} {
		if below(all, pid, 2) != want {
			t.Errorf("process %d below 2: want %v", pid, want)
		}
	}
}
