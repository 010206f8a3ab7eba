package policy

import "fmt"

// ClosedPorts is the step that drops local packets that no socket waits for, before they are tracked.
const ClosedPorts StepName = "closed-ports"

type closedPorts struct{ plain }

func (*closedPorts) want(s situation, p *Posture) []Event {
	p.ClosedPorts = s.works
	return nil
}

func (*closedPorts) done(o Observation) uint64 { return o.Work.ClosedDropped }

// unrepliedLife is how many seconds a packet that nobody answers stays in the table at the kernel's
// defaults, as nf_conntrack_udp_timeout.
const unrepliedLife = udpTimeout

func (*closedPorts) quiet(s situation, rate float64) bool { return s.roomFor(rate * unrepliedLife) }

func (*closedPorts) brought(_ situation, done uint64, _ outcome) string {
	return fmt.Sprintf("dropped %d packets that no socket waited for", done)
}
