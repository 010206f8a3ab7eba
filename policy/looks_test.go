package policy

import (
	"testing"
	"time"
)

// counting lets time pass and returns for how much of it packets were counted.
func (h *trialHost) counting(d time.Duration) (counted time.Duration) {
	const tick = 50 * time.Millisecond
	for end := h.o.Time.Add(d); h.o.Time.Before(end); {
		h.pass(tick)
		if h.u.counts(h.o, Defaults(Server)) {
			counted += tick
		}
	}
	return counted
}

// What becomes of packets is counted in short looks, at once when somebody changes the host's rules, and all the
// time where a selector without a port goes untracked.
func TestLooksAreShort(t *testing.T) {
	h := newTrialHost(t, "tcp/80", "udp/53")
	h.counting(10 * time.Second) // the trials
	if got := h.counting(100 * time.Second); got < 4*time.Second || got > 6*time.Second {
		t.Errorf("counted for %v of 100s, want a twentieth", got)
	}
	for range 3 {
		if h.counting(5*time.Second) > 2*time.Second {
			continue // a look of its own fell into it
		}
		h.o.Foreign++
		if got := h.counting(time.Second); got < 900*time.Millisecond {
			t.Errorf("counted for %v in the second after somebody changed the rules", got)
		}
	}

	h = newTrialHost(t, "all", "tcp/80")
	h.counting(10 * time.Second)
	if got := h.counting(30 * time.Second); got != 30*time.Second {
		t.Errorf("counted for %v of 30s where this host's own questions matter", got)
	}
}

// A trial that nobody asks is looked at no longer than others, and as soon as somebody does ask: rules that drop what
// is untracked end it with the packets that repeat the first.
func TestIdleTrialIsLookedAtOnceAsked(t *testing.T) {
	h := newTrialHost(t, "tcp/80", "tcp/22")
	h.idle["tcp/22"], h.drops["tcp/22"] = true, true
	h.counting(30 * time.Second)
	for h.counting(50*time.Millisecond) > 0 { // until a look ends
	}
	ssh := parsed(t, "tcp/22")
	w := h.o.Work.Selectors[ssh]
	w.Asked++
	h.o.Work.Selectors[ssh] = w
	if got := h.counting(7 * time.Second); got < 6900*time.Millisecond {
		t.Errorf("counted for %v of the 7s in which a client tries again", got)
	}
	w = h.o.Work.Selectors[ssh]
	w.Requests += 3
	h.o.Work.Selectors[ssh] = w
	if stages, told := h.pass(100 * time.Millisecond); stages["tcp/22"] != "" {
		t.Errorf("stages %v, want tcp/22 taken back:\n%s", stages, told)
	}
}
