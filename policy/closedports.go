package policy

import "fmt"

// ClosedPorts is the step that drops local packets that no socket waits for, before they are tracked.
const ClosedPorts StepName = "closed-ports"

type closedPorts struct{ plain }

func (*closedPorts) want(s situation, p *Posture) []Event {
	if p.ClosedPorts = s.works; s.works {
		p.ClosedRate = closedRate(s.Capacity)
	}
	return nil
}

// closedRate is how many packets to closed ports are let through a second, which fill a twentieth of the capacity
// as long as they come. Somebody waits for what is said of a closed port: a balancer whose first backend is down
// turns to the second upon a reset, a mail server that asks for ident goes on upon one, and who knocks is let in by
// it.
func closedRate(capacity int) int { return max(1, int(budgetPart*float64(capacity)/unrepliedLife)) }

func (*closedPorts) done(o Observation) uint64 { return o.Work.ClosedDropped }

// unrepliedLife is how many seconds a packet that nobody answers stays in the table at the kernel's
// defaults, as nf_conntrack_udp_timeout.
const unrepliedLife = udpTimeout

func (*closedPorts) quiet(s situation, rate float64) bool { return s.roomFor(rate * unrepliedLife) }

func (*closedPorts) brought(_ situation, done uint64, _ outcome) string {
	return fmt.Sprintf("dropped %d packets that no socket waited for", done)
}
