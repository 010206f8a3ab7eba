package main

import (
	"runtime"
	"testing"
)

// On a calm day one processor is enough; in an attack there are as many as before, unless somebody said how many.
func TestProcessors(t *testing.T) {
	t.Setenv("GOMAXPROCS", "")
	all := runtime.GOMAXPROCS(0)
	t.Cleanup(runtime.SetDefaultGOMAXPROCS)
	var p processors
	for _, step := range []struct {
		calm bool
		want int
	}{{false, all}, {true, 1}, {true, 1}, {false, all}, {true, 1}, {false, all}} {
		if p.calm(step.calm); runtime.GOMAXPROCS(0) != step.want {
			t.Errorf("calm %v: %d processors, want %d", step.calm, runtime.GOMAXPROCS(0), step.want)
		}
	}
	t.Setenv("GOMAXPROCS", "2")
	if p.calm(true); runtime.GOMAXPROCS(0) != all {
		t.Errorf("%d processors where somebody asked for some", runtime.GOMAXPROCS(0))
	}
}
