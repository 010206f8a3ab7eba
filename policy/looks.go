package policy

import "time"

// looks says when what becomes of selectors' packets is counted. Counting costs every packet something, in its
// ways in and out, so it is done in short looks: while a trial is to find something out, each few seconds afterwards,
// and whenever somebody may have changed the host's rules. What a look did not see the next one goes on with.
type looks struct {
	last    time.Time              // when the last look began
	foreign uint64                 // changes of the host's rules by then
	asked   map[Selector]uint64    // what those on trial had been asked between looks
	busy    map[Selector]time.Time // since when those on trial are looked at because somebody asks
}

// lookEvery is how many times as long as a look the time from one to the next is. A change of the host's rules is seen
// sooner: of nftables at once, and the survey reads those of iptables-legacy.
const lookEvery = 20

// counts reports whether packets are to be counted now.
func (u *trials) counts(o Observation, c Config) bool {
	l := &u.looks
	if l.last.IsZero() || o.Time.Sub(l.last) >= lookEvery*c.Trial || o.Foreign != l.foreign {
		l.last, l.foreign = o.Time, o.Foreign
	}
	counts := o.Time.Sub(l.last) < c.Trial
	for s, t := range u.selectors {
		rare := s.Whole() && t.stage != Watched // this host may ask for something only now and then
		counts = u.tries(s, t, o, c) || rare || counts
	}
	return counts
}

// tries reports whether a selector's trial has something to find out now. One that nobody asks has not; the first
// packet that comes goes uncounted, and those that repeat it do not.
func (u *trials) tries(s Selector, t *trial, o Observation, c Config) bool {
	if t.stage != Trial {
		delete(u.looks.asked, s)
		delete(u.looks.busy, s)
		return false
	}
	asked, before := o.Work.Selectors[s].Asked, u.looks.asked[s]
	if u.looks.asked == nil {
		u.looks.asked, u.looks.busy = map[Selector]uint64{}, map[Selector]time.Time{}
	}
	u.looks.asked[s] = asked
	if asked > before {
		u.looks.busy[s] = o.Time
	}
	return o.Time.Sub(t.since) < 2*c.Trial || o.Time.Sub(u.looks.busy[s]) < patientLook
}

// patientLook is how long a trial is looked at after somebody asked: a connection that gets no answer is tried again
// after 1, 3 and 7 seconds (RFC 6298, 2), and a trial is judged on the third packet.
const patientLook = 8 * time.Second
