package policy

import "time"

// The half-open share of the capacity, in percent, at which a SYN flood is pressure of its own, and
// below which it no longer is: the marks of pf's adaptive syncookies (pf.conf(5), "set syncookies").
// A steady flood need not fill the table to take a quarter of it away.
const (
	halfOpenEnter = 25
	halfOpenLeave = 12
)

// halfOpenAge is how old a scan may be that says so: at level 0 there is one every ten seconds.
const halfOpenAge = 15 * time.Second

// tcpSynSent is TCP_CONNTRACK_SYN_SENT of include/uapi/linux/netfilter/nf_conntrack_tcp.h: a SYN
// that nobody has answered yet.
const tcpSynSent = 1

// withHalfOpen raises a reading's pressure to the enter mark of the step that helps against a SYN
// flood, while handshakes under way hold too much of the table, or are about to.
func (m *Machine) withHalfOpen(o Observation, r reading) reading {
	m.halfOpen = m.halfOpenShare(o, r)
	m.synFlood = m.halfOpen >= halfOpenEnter || m.synFlood && m.halfOpen >= halfOpenLeave
	if !m.synFlood {
		return r
	}
	for _, name := range []StepName{NotrackStep, Synproxy, Tighten} {
		if step, on := m.cfg.Step(name); on && m.skipped(name, o) == "" {
			r.pressure = max(r.pressure, step.Enter)
			break
		}
	}
	return r
}

// halfOpenShare returns the percentage of the capacity that handshakes under way hold by the newest
// census, and are about to; 0 if that is too old.
func (m *Machine) halfOpenShare(o Observation, r reading) float64 {
	c := m.census
	if c == nil || o.Time.Sub(c.Time) > halfOpenAge {
		return 0
	}
	return c.shareAhead(c.Classes[HalfOpen]+c.TCPStates[tcpSynSent], o, r)
}

// shareAhead returns the percentage of the capacity that n of the entries seen stand for. What growth
// adds within the lookahead is taken to be of the same kinds as the entries that are not assured: at the
// onset of a flood most of these are its own. A few prove nothing.
func (c *Census) shareAhead(n int, o Observation, r reading) float64 {
	if c.Seen == 0 {
		return 0
	}
	share := r.fill * float64(n) / float64(c.Seen)
	if passing := c.Seen - c.Classes[Assured]; r.growing() && n >= enoughSeen && passing > 0 && o.Time.Sub(c.Time) <= shapeFor {
		share += max(0, min(r.pressure, 100)-r.fill) * min(1, float64(n)/float64(passing))
	}
	return share
}
