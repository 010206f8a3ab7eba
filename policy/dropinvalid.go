package policy

import (
	"fmt"
	"time"
)

// DropInvalid is the step that holds TCP to the connections that conntrack knows.
const DropInvalid StepName = "drop-invalid"

// tcpLiberal is the setting with which what is out of window is not invalid.
const tcpLiberal = "nf_conntrack_tcp_be_liberal"

type dropInvalid struct{ plain }

func (*dropInvalid) skipped(s situation) string {
	if s.Admin[tcpLiberal] != 0 {
		return "tcp_be_liberal is on: what is out of window is not invalid here"
	}
	switch day := s.ordinary; {
	case !day.Flows:
		return "the table has not been watched long enough to rule out connections that this host sees one direction of"
	case day.OneWay > 0:
		return fmt.Sprintf("%d connections of which this host sees one direction only are part of its ordinary day "+
			"(asymmetric routes?)", day.OneWay)
	case day.invalidIsOrdinary(s.cfg.OrdinaryInvalid):
		return fmt.Sprintf("%.0f invalid packets a second are part of this host's ordinary day (asymmetric routes?)",
			day.Invalid)
	}
	return ""
}

// want leaves the last word to the arbiter of tcp_loose.
func (*dropInvalid) want(s situation, p *Posture) []Event {
	if s.works {
		p.DropInvalid, s.shared.loose.strict = true, true
	}
	return nil
}

func (*dropInvalid) status(s situation) string {
	if loose := s.shared.loose; s.engaged && loose.pickingUp(s.Time) {
		return fmt.Sprintf("waits %s more while connections are picked up in the middle: %s",
			loose.until.Sub(s.Time).Round(time.Second), loose.why)
	}
	return ""
}

func (*dropInvalid) done(o Observation) uint64 { return o.Work.InvalidDropped }

func (*dropInvalid) quiet(s situation, rate float64) bool {
	return rate <= quietRate+2*s.ordinary.Invalid
}

func (*dropInvalid) brought(_ situation, done uint64, _ outcome) string {
	return fmt.Sprintf("dropped %d invalid packets", done)
}
