package agent

import (
	"ctguard/agent/conntrack"
	"ctguard/agent/control"
	"ctguard/policy"
)

// holders tells clients who holds the table, beside what each usually holds.
func holders(c *policy.Census, day *policy.OrdinaryDay, host policy.Host) *control.HoldersStatus {
	mid := func(seen int) int { n, _, _ := c.Estimate(seen); return n }
	h := &control.HoldersStatus{Time: c.Time, Sampled: !c.Whole, Distinct: c.Distinct, States: make(map[string]int),
		Protocols: make(map[string]int), Roles: roles(c), Sources: []control.HolderStatus{}}
	for class, seen := range c.Classes {
		if seen > 0 {
			h.States[policy.Class(class).String()] = mid(seen)
		}
	}
	for number, seen := range c.Protocols {
		h.Protocols[conntrack.ProtocolName(number)] = mid(seen)
	}
	for _, s := range c.Sources[:min(control.MostHolders, len(c.Sources))] {
		usual := day.Usual(s.Source())
		h.Sources = append(h.Sources, control.HolderStatus{Prefix: s.Prefix, Zone: s.Zone, Entries: mid(s.Entries),
			Usual: int(usual.Assured + usual.Transient + 0.5), Inside: host.IsInside(s.Prefix)})
	}
	return h
}

// roles tells what this host has to do with the entries.
func roles(c *policy.Census) map[string]float64 {
	all := 0
	for _, n := range c.Roles {
		all += n
	}
	shares := make(map[string]float64)
	for role, n := range c.Roles {
		if n > 0 {
			shares[policy.Role(role).String()] = round(100 * float64(n) / float64(all))
		}
	}
	return shares
}
