package policy

import (
	"math"
	"time"
)

// ordinaryDay is what an ordinary day on this host looks like, learnt at level 0. It is the measure for what is
// quiet, and for what must not be taken for an attack.
type ordinaryDay struct {
	invalid  float64 // INVALID packets per second
	arrivals float64 // the peak of new work per second; it fades over minutes

	invalidPace, arrivalsPace pace
}

// How long ordinary traffic is remembered: a peak of arrivals until it has faded to a third, and the
// mean of INVALID packets.
const (
	arrivalsFade = 10 * time.Minute
	invalidMean  = time.Minute
)

// observe takes one observation in; it learns from it only while the day is ordinary.
func (d *ordinaryDay) observe(o Observation, ordinary bool) {
	before := d.arrivalsPace.at
	invalid := d.invalidPace.update(o.Time, o.Kernel.Invalid)
	arrivals := d.arrivalsPace.update(o.Time, o.Arrivals.TCPOpens+o.Arrivals.UDPDatagrams+o.Arrivals.Echoes)
	if !ordinary || before.IsZero() {
		return
	}
	dt := max(0, o.Time.Sub(before).Seconds())
	d.invalid += (1 - math.Exp(-dt/invalidMean.Seconds())) * (invalid - d.invalid)
	d.arrivals = max(arrivals, d.arrivals*math.Exp(-dt/arrivalsFade.Seconds()))
}
