package policy

import "time"

// tcpLoose is the setting with which conntrack picks connections up in the middle.
const tcpLoose = "nf_conntrack_tcp_loose"

// looseArbiter decides whether tcp_loose is 0, which is nobody's step: what holds TCP to the connections that
// conntrack knows wants it so. But connections that live untracked, or did until a moment ago, must not
// meet that.
type looseArbiter struct {
	needEntries bool // TCP connections that lived untracked may lack entries
	untracked   bool // TCP services live untracked, or are about to
	strict      bool // a step wants tcp_loose=0

	emptied time.Time // when most of the table went at once: what lives must be picked up again
}

// pickUpFor is how long connections are picked up in the middle after the table was emptied: those that are silent
// longer are kept alive by the keepalives of ssh and of most other protocols, which come every minute or two.
const pickUpFor = 2 * time.Minute

// pickingUp reports whether the table was emptied a moment ago.
func (a looseArbiter) pickingUp(now time.Time) bool {
	return !a.emptied.IsZero() && now.Sub(a.emptied) < pickUpFor
}

// mustStay reports whether tcp_loose must keep the administrator's value, which is not 0.
func (a looseArbiter) mustStay(o Observation) bool {
	return o.Admin[tcpLoose] != 0 && (a.needEntries || a.untracked || a.pickingUp(o.Time))
}

// decide writes the outcome into p, once every step has said what it wants.
func (a looseArbiter) decide(o Observation, p *Posture) {
	if a.needEntries || a.pickingUp(o.Time) {
		p.DropInvalid = false
	}
	if a.strict && !a.mustStay(o) && o.Admin[tcpLoose] != 0 {
		p.Settings[tcpLoose] = 0
	}
}
