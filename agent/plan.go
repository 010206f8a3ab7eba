package agent

import (
	"fmt"
	"time"

	"ctguard/agent/config"
	"ctguard/agent/conntrack"
	"ctguard/agent/state"
	"ctguard/agent/survey"
	"ctguard/agent/sysctl"
	"ctguard/nft"
	"ctguard/policy"
)

// Plan is what a level would bring on this host.
type Plan struct {
	Level     int                     `json:"level"`
	Steps     []policy.StepStatus     `json:"steps"`
	Selectors []policy.SelectorStatus `json:"selectors"`
	Settings  []sysctl.Change         `json:"settings"` // as changes from what is now
	Rules     []string                `json:"rules"`    // what the ruleset does, in words
	Ruleset   string                  `json:"ruleset"`  // in nft syntax
}

// NewPlan finds out what level would bring here, with the table as it is now, selectors as if they
// had passed their trial and timeouts as if the table were full. It only reads.
func NewPlan(c config.Config, root string, level int) (Plan, error) {
	if most := len(c.Policy.Steps); level < 0 || level > most {
		return Plan{}, fmt.Errorf("level %d is not between 0 and %d, the number of steps on this ladder", level, most)
	}
	settings, err := sysctl.NewKeeper(root+"/proc", "")
	if err != nil {
		return Plan{}, err
	}
	table, err := conntrack.Open()
	if err != nil {
		return Plan{}, err
	}
	defer table.Close()
	here := survey.New(root)
	facts := survey.NewSurveyor(here, c, nil).Survey()
	if facts.Admin, err = settings.Admin(); err != nil {
		return Plan{}, err
	}
	now := time.Now()
	actuator := &dry{settings: settings}
	o := policy.Observation{Time: now, Host: facts.Host}
	// A counter that can't be read makes no difference to a plan.
	if _, err := (sensors{table, here}).read(&o, c.Capacity, actuator.work); err != nil {
		return Plan{}, err
	}
	// Kernel drops move between the two ticks, so that the second one sees a full table.
	// What a step does is shown even where a daemon would watch for a while first.
	m := policy.New(c.Policy)
	day, err := state.At(c.StateDir).Day(now)
	if err != nil || !day.Known() {
		day = policy.OrdinaryDay{Updated: now}
	}
	day.Flows = true
	m.Recall(day)
	m.SetOverride(&policy.Override{Kind: policy.Pin, Level: level, Until: now.Add(time.Hour), Reason: "plan"})
	o.Count = max(o.Count, o.Capacity)
	o.Work.Selectors = make(map[policy.Selector]policy.SelectorWork)
	for _, s := range o.Services {
		o.Work.Selectors[s] = policy.SelectorWork{} // counted, so its trial begins
	}
	m.Tick(o)
	o.Time = now.Add(c.Policy.Pressed)
	posture := m.Tick(o).Posture
	for i, n := range posture.Notrack {
		if n.Stage == policy.Trial {
			posture.Notrack[i].Stage = policy.Freed
		}
	}
	changes, err := actuator.set(posture.Settings)
	return Plan{level, m.Steps(), m.Selectors(), changes, inWords(posture),
		nft.Render(nft.Desired{Posture: posture, Allow: facts.Allow}, now)}, err
}

// inWords says what the rules of a posture do.
func inWords(p policy.Posture) []string {
	words := []string{}
	say := func(does bool, format string, args ...any) {
		if does {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	say(p.DropInvalid, "drop what conntrack calls INVALID")
	say(p.ClosedPorts, "drop packets for this host that no socket waits for")
	for _, n := range p.Notrack {
		say(true, "leave %s untracked", n.Selector)
	}
	say(len(p.Synproxy) > 0, "answer TCP handshakes with SYN cookies, ports %v", p.Synproxy)
	for _, b := range p.Budgets {
		say(true, "let at most %d new flows a second of %s in", b.Rate, b.Class)
	}
	for _, l := range p.Limits {
		say(true, "%s %s: %s", l.Kind, l.Source(), l.Reason)
	}
	return words
}
