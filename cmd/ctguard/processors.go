package main

import (
	"os"
	"runtime"
)

// processors bounds how many processors this process computes on at once: one on a calm day, all of them else. With
// more than one, Go's scheduler wakes another thread at each of the few things that there are to do then, only to find
// that nothing is left for it; that was a third of what the agent took of an idle host.
type processors struct{ one bool }

// calm is told whether there is little to do, and is for one goroutine. What whoever started this process has asked for
// stays.
func (p *processors) calm(calm bool) {
	if calm == p.one || os.Getenv("GOMAXPROCS") != "" {
		return
	}
	p.one = calm
	if calm {
		runtime.GOMAXPROCS(1)
	} else {
		runtime.SetDefaultGOMAXPROCS()
	}
}
