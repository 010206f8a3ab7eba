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

// raiseForHalfOpen raises pressure to the enter mark of the first step that helps against a SYN flood, while
// handshakes under way hold too much of the table, or are about to.
func (m *Machine) raiseForHalfOpen(s *situation) {
	s.halfOpen = m.halfOpenShare(*s)
	s.synFlood = s.halfOpen >= halfOpenEnter || m.last.synFlood && s.halfOpen >= halfOpenLeave
	if !s.synFlood {
		return
	}
	for _, w := range m.steps {
		told := m.tell(w, *s)
		if w.stopsSYNs && told.listed() && w.skipped(told) == "" {
			s.pressure = max(s.pressure, told.marks.Enter)
			return
		}
	}
}

// halfOpenShare returns the percentage of the capacity that handshakes under way hold by the newest
// census, and are about to; 0 if that is too old.
func (m *Machine) halfOpenShare(s situation) float64 {
	c := m.census
	if c == nil || s.Time.Sub(c.Time) > halfOpenAge {
		return 0
	}
	return c.shareAhead(c.Classes[HalfOpen]+c.TCPStates[tcpSynSent], s)
}

// shareAhead returns the percentage of the capacity that n of the entries seen stand for. What growth
// adds within the lookahead is taken to be of the same kinds as the entries that are not assured: at the
// onset of a flood most of these are its own. A few prove nothing.
func (c *Census) shareAhead(n int, s situation) float64 {
	if c.Seen == 0 {
		return 0
	}
	share := s.fill * float64(n) / float64(c.Seen)
	transient := c.Seen - c.Classes[Assured]
	if s.growing() && n >= enoughSeen && transient > 0 && s.Time.Sub(c.Time) <= shapeFor {
		share += max(0, min(s.pressure, 100)-s.fill) * min(1, float64(n)/float64(transient))
	}
	return share
}
