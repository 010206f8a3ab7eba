package policy

import "time"

// conversations are the timeouts of what carries conversations. Of these it is learnt how long they are silent before
// they go on; the others end what is over, or what never began.
var conversations = [...]string{
	"nf_conntrack_tcp_timeout_established", "nf_conntrack_tcp_timeout_fin_wait", "nf_conntrack_tcp_timeout_close_wait",
	"nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream", "nf_conntrack_generic_timeout",
	"nf_conntrack_gre_timeout_stream", "nf_conntrack_sctp_timeout_established", "nf_conntrack_dccp_timeout_open",
}

// WatchedFloors returns the floors, in seconds by sysctl name, that conversations could fall below: where the
// administrator's value is longer. A scan looks for silences as long as these.
func WatchedFloors(floors, admin map[string]int) map[string]int {
	watched := make(map[string]int)
	for _, name := range conversations {
		if floor, ok := floors[name]; ok && admin[name] > floor {
			watched[name] = floor
		}
	}
	return watched
}

// Silence is how long conversations are silent and go on all the same.
type Silence struct {
	Seconds int       `json:"seconds"` // the longest seen
	Seen    time.Time `json:"seen"`    // when one of three quarters of it and more was seen last
}

// silentMargin is the part that is added to a silence: it may have been longer than what was seen of it. As long as
// tighten is engaged, silences almost as long as a timeout make it longer, by this part each time.
const silentMargin = 0.25

// learnSilences remembers the longest silence of each timeout's conversations for a week. It learns at any time:
// who comes back late while tighten is engaged shows that others came too late.
func (d *OrdinaryDay) learnSilences(c *Census) {
	for name, s := range d.Silences {
		if c.Time.Sub(s.Seen) > staleDay {
			delete(d.Silences, name)
		}
	}
	for name, seconds := range c.Silences {
		was := d.Silences[name]
		if d.Silences == nil {
			d.Silences = make(map[string]Silence)
		}
		if 4*seconds >= 3*was.Seconds {
			d.Silences[name] = Silence{max(seconds, was.Seconds), c.Time}
		}
	}
}

// patience returns the timeout, in seconds, that conversations need here, as far as is known.
func (d *OrdinaryDay) patience(name string) int {
	seconds := d.Silences[name].Seconds
	return seconds + int(silentMargin*float64(seconds))
}
