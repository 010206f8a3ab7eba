package policy

import "fmt"

// DropInvalid is the step that holds TCP to the connections that conntrack knows.
const DropInvalid StepName = "drop-invalid"

// tcpLiberal is the setting with which what is out of window is not invalid.
const tcpLiberal = "nf_conntrack_tcp_be_liberal"

type dropInvalid struct{ plain }

func (*dropInvalid) skipped(s situation) string {
	if s.Admin[tcpLiberal] != 0 {
		return "tcp_be_liberal is on: what is out of window is not invalid here"
	}
	if s.ordinary.invalid > s.cfg.CalmInvalid {
		return fmt.Sprintf("%.0f invalid packets a second are part of this host's calm traffic (asymmetric routes?)",
			s.ordinary.invalid)
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

func (*dropInvalid) done(o Observation) uint64 { return o.Work.InvalidDropped }

func (*dropInvalid) quiet(s situation, rate float64) bool {
	return rate <= quietRate+2*s.ordinary.invalid
}

func (*dropInvalid) brought(_ situation, done uint64, _ outcome) string {
	return fmt.Sprintf("dropped %d invalid packets", done)
}
