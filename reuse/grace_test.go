package reuse

import "testing"

// TestGrace: who waits at the same time waits together, and whoever comes during a wait gets one that begins later.
func TestGrace(t *testing.T) {
	defer func(before func() error) { kernelGrace = before }(kernelGrace)
	began, end := make(chan struct{}), make(chan struct{})
	kernelGrace = func() error {
		began <- struct{}{}
		<-end
		return nil
	}
	first := grace()
	<-began
	second := grace() // the first has begun
	if first == second {
		t.Fatal("a wait that had begun was shared")
	}
	for range 200 {
		if grace() != second {
			t.Fatal("a wait to come was not shared")
		}
	}
	end <- struct{}{}
	<-first
	<-began
	select {
	case <-second:
		t.Fatal("the second was over before its own wait")
	default:
	}
	end <- struct{}{}
	<-second
}
