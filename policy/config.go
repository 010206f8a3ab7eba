package policy

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"
)

// Profile is what kind of host this is: found out entry by entry, or fixed.
type Profile string

// The profiles.
const (
	Auto       Profile = "auto"        // both, as far as addresses, routes and NAT rules say
	Server     Profile = "server"      // nothing is forwarded for anybody
	NATGateway Profile = "nat-gateway" // everything is, and nothing is this host's own
)

// StepName names a step of the ladder. Each step's file has its name; see [StepNames].
type StepName string

// Step is one step's place on the ladder.
type Step struct {
	Name   StepName
	Enter  float64       // percent of pressure at which the step is engaged
	Leave  float64       // percent of pressure below which it may be taken back
	Settle time.Duration // its settle time: how long pressure must stay below Leave
}

// Weight lets a prefix hold more than one fair share: a CGNAT address or a partner is many users.
type Weight struct {
	Prefix netip.Prefix
	Weight float64
}

// Config is everything the machine can be told. [Defaults] fills it; [Config.Validate] checks it.
type Config struct {
	Profile   Profile
	Lookahead time.Duration // how far ahead pressure projects the fill
	Calm      time.Duration // the tick with time to spare
	Pressed   time.Duration // the tick under pressure
	Steps     []Step        // the ladder; a step that is off is absent

	Trial           time.Duration // how long a selector's replies are compared before its old entries are freed
	RetryTrial      time.Duration // when a selector that failed its trial may be tried again
	OrdinaryInvalid float64       // INVALID packets per second in calm above which drop-invalid is skipped

	Floors map[string]int // the shortest timeouts that tighten may set, in seconds by sysctl name

	Target       float64 // percent of capacity that the fair share aims at
	Floor        int     // entries below which nobody is ever limited
	Weights      []Weight
	SpareAssured bool          // evict no assured entry of anybody, whatever the excess
	MaxLimited   int           // sources limited at once
	LimitFor     time.Duration // the first limit of a source; doubled for repeaters
	MaxLimitFor  time.Duration
	LimitRate    int  // new flows per second that a limited source may open at most
	BanUnreplied bool // limit whatever source gets no reply for its excess: only where addresses can't be spoofed
	Reject       bool // answer what a limit drops
	FoldV4       int  // prefix length to which heavy sources are folded when they outnumber MaxLimited
	FoldV6       int

	ClassShare float64 // percent of the capacity that a class of flows without answers must hold to be a flood's
}

// Defaults returns the configuration of a profile without a config file.
func Defaults(p Profile) Config {
	return Config{
		Profile:         p,
		Lookahead:       5 * time.Second,
		Calm:            250 * time.Millisecond,
		Pressed:         50 * time.Millisecond,
		Steps:           defaultSteps(),
		Trial:           time.Second,
		RetryTrial:      time.Hour,
		OrdinaryInvalid: 2,
		Floors:          timeoutFloors(p),
		Target:          58, // just below the enter mark of drop-invalid, so that the ladder can come down
		Floor:           4,
		SpareAssured:    p == NATGateway,
		BanUnreplied:    p == NATGateway, // scans by an inside host are what fills its table
		MaxLimited:      4096,
		LimitFor:        time.Minute,
		MaxLimitFor:     time.Hour,
		LimitRate:       10,
		FoldV4:          24,
		FoldV6:          48,
		ClassShare:      10,
	}
}

// Step returns the step called name and whether it is on the ladder.
func (c Config) Step(name StepName) (Step, bool) {
	i := slices.IndexFunc(c.Steps, func(s Step) bool { return s.Name == name })
	if i < 0 {
		return Step{}, false
	}
	return c.Steps[i], true
}

// A FieldError says which field of a [Config] is wrong, as a path of TOML keys, and what would be
// right.
type FieldError struct {
	Key  string // such as "steps.evict.leave"
	Text string
}

// Error returns the key and what is wrong with it.
func (e *FieldError) Error() string { return e.Key + ": " + e.Text }

// Validate returns every fault of c, in the order of the fields; none means that c can be used.
func (c Config) Validate() []*FieldError {
	var faults []*FieldError
	need := func(ok bool, key, format string, args ...any) {
		if !ok {
			faults = append(faults, &FieldError{key, fmt.Sprintf(format, args...)})
		}
	}
	need(slices.Contains([]Profile{Auto, Server, NATGateway}, c.Profile), "profile",
		`%q is none of "auto", "server" and "nat-gateway"`, c.Profile)
	need(c.Lookahead >= 0 && c.Lookahead <= 5*time.Minute, "lookahead", "%s is not between 0s and 5m", c.Lookahead)
	need(c.Pressed >= 10*time.Millisecond, "tick.pressed", "%s is below 10ms", c.Pressed)
	need(c.Calm >= c.Pressed && c.Calm <= 10*time.Second, "tick.calm",
		"%s is not between tick.pressed (%s) and 10s", c.Calm, c.Pressed)
	faults = append(faults, c.validateSteps()...)
	need(c.Trial >= 100*time.Millisecond && c.Trial <= time.Minute, "notrack.trial",
		"%s is not between 100ms and 1m", c.Trial)
	need(c.RetryTrial >= 0, "notrack.retry", "%s is below 0s", c.RetryTrial)
	need(c.OrdinaryInvalid >= 0, "drop_invalid.calm_per_second", "%v is below 0", c.OrdinaryInvalid)
	need(c.Target > 0 && c.Target < 100, "evict.target", "%v is not between 0 and 100", c.Target)
	if evict, ok := c.Step(Evict); ok {
		need(c.Target < evict.Leave, "evict.target",
			"%v is not below steps.evict.leave (%v): evict could never be taken back", c.Target, evict.Leave)
	}
	need(c.Floor >= 1, "evict.floor", "%d is below 1", c.Floor)
	for _, w := range c.Weights {
		need(w.Weight > 0 && !math.IsInf(w.Weight, 1), fmt.Sprintf("evict.weights.%q", w.Prefix),
			"%v is not a number above 0", w.Weight)
	}
	need(c.MaxLimited >= 1 && c.MaxLimited <= 65536, "evict.max_limited", "%d is not between 1 and 65536", c.MaxLimited)
	need(c.LimitFor >= time.Second, "evict.limit_for", "%s is below 1s", c.LimitFor)
	need(c.MaxLimitFor >= c.LimitFor, "evict.max_limit_for", "%s is below evict.limit_for (%s)", c.MaxLimitFor, c.LimitFor)
	need(c.LimitRate >= 1, "evict.limit_rate", "%d is below 1", c.LimitRate)
	need(c.ClassShare > 0 && c.ClassShare <= 100, "admit.share",
		"%v is not a percentage above 0 and up to 100", c.ClassShare)
	return faults
}

// validateSteps checks each step's marks, and that the ladder climbs.
func (c Config) validateSteps() []*FieldError {
	var faults []*FieldError
	fault := func(s Step, key, format string, args ...any) {
		faults = append(faults, &FieldError{"steps." + string(s.Name) + key, fmt.Sprintf(format, args...)})
	}
	for i, s := range c.Steps {
		switch {
		case !slices.Contains(StepNames(), s.Name):
			fault(s, "", "is no step")
		case !(s.Enter > 0 && s.Enter <= 100): // so that it is false of what is no number
			fault(s, ".enter", "%v is not a percentage above 0 and up to 100", s.Enter)
		case !(s.Leave > 0 && s.Leave < s.Enter):
			fault(s, ".leave", "%v is not above 0 and below its enter mark (%v)", s.Leave, s.Enter)
		case i > 0 && s.Enter < c.Steps[i-1].Enter && c.Steps[i-1].Enter <= 100:
			fault(s, ".enter", "%v is below that of %s (%v), the step before it", s.Enter, c.Steps[i-1].Name, c.Steps[i-1].Enter)
		}
		if s.Settle < 100*time.Millisecond || s.Settle > time.Hour {
			fault(s, ".settle", "%s is not between 100ms and 1h", s.Settle)
		}
	}
	return faults
}
