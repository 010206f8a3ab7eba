package lab

import (
	"context"
	"slices"

	"ctguard/cmd/ctlab/internal/spent"
)

// guard is what is done about an attack.
type guard interface {
	// start puts the guard to work on a site; it is in effect on return.
	start(ctx context.Context, r *run) error
	// level is the guard's level, -1 where it has none.
	level() int
	// cost is what the guard has used so far.
	cost() Cost
	// stop ends the guard and takes it back.
	stop(r *run) error
}

// GuardInfo is one entry of the list of guards.
type GuardInfo struct {
	Name    string
	Summary string

	// Optional guards need a program that may not be there: the matrix leaves them out unless asked.
	Optional bool

	agent    bool // it goes on working while the table is full
	capacity int  // of the table, 0: the scenario's
	make     func(Scenario) guard
}

// hugeTable is the control run's table: nothing can fill it, so what clients lose in it, they
// lose to something else.
const hugeTable = 1 << 20

// Guards lists the guards that can be compared, in the order in which they are shown.
var Guards = []GuardInfo{
	{Name: "none", Summary: "nothing is done", make: func(Scenario) guard { return passive{} }},
	{
		Name: "control", Summary: "nothing is done, and the table is too large to fill",
		capacity: hugeTable, make: func(Scenario) guard { return passive{} },
	},
	{
		Name: "advice", Summary: "the usual advice: shorter timeouts, INVALID dropped",
		make: func(Scenario) guard { return passive{sysctls: adviceSysctls, rules: adviceRules} },
	},
	{
		Name: "static", Summary: "a competent static ruleset: at most 100 connections a source, strict TCP pick-up",
		make: func(Scenario) guard { return passive{sysctls: staticSysctls, rules: staticRules} },
	},
	{
		Name: "fail2ban", Summary: "fail2ban on the log of new connections, where it is installed", Optional: true,
		make: func(Scenario) guard { return &fail2ban{} },
	},
	{Name: "ctguard", Summary: "ctguard with its default configuration", agent: true, make: newCTGuard("")},
	{
		Name: "ctguard-evict", Summary: "ctguard without notrack, as on a host that refuses it",
		agent: true, make: newCTGuard("[steps.notrack]\nenabled = false\n"),
	},
}

func guardNamed(name string) (GuardInfo, bool) {
	i := slices.IndexFunc(Guards, func(g GuardInfo) bool { return g.Name == name })
	if i < 0 {
		return GuardInfo{}, false
	}
	return Guards[i], true
}

// passive is a guard that is set once and does nothing by itself.
type passive struct {
	sysctls map[string]string
	rules   string
}

func (p passive) start(_ context.Context, r *run) error {
	if err := r.site.protected.Sysctl(p.sysctls); err != nil {
		return err
	}
	if p.rules == "" {
		return nil
	}
	return nft(r.site.protected, p.rules)
}

func (passive) level() int      { return -1 }
func (passive) cost() Cost      { return Cost{} }
func (passive) stop(*run) error { return nil }

// adviceSysctls are the timeouts that guides on a full table recommend.
var adviceSysctls = map[string]string{
	"net.netfilter.nf_conntrack_tcp_timeout_established": "600",
	"net.netfilter.nf_conntrack_tcp_timeout_syn_recv":    "20",
	"net.netfilter.nf_conntrack_tcp_timeout_syn_sent":    "20",
	"net.netfilter.nf_conntrack_tcp_timeout_fin_wait":    "20",
	"net.netfilter.nf_conntrack_tcp_timeout_time_wait":   "20",
	"net.netfilter.nf_conntrack_udp_timeout":             "10",
	"net.netfilter.nf_conntrack_udp_timeout_stream":      "60",
	"net.netfilter.nf_conntrack_generic_timeout":         "60",
}

const adviceRules = `
table inet advice {
	chain input {
		type filter hook input priority filter - 5; policy accept;
		ct state invalid drop
	}
	chain forward {
		type filter hook forward priority filter - 5; policy accept;
		ct state invalid drop
	}
}
`

var staticSysctls = map[string]string{
	"net.netfilter.nf_conntrack_tcp_loose": "0",
}

// staticRules limits each source's connections, with sets large enough for every
// source of the lab: a dynamic set that is full lets everything pass.
const staticRules = `
table inet static {
	set held4 { type ipv4_addr; size 131072; flags dynamic; }
	set held6 { type ipv6_addr; size 131072; flags dynamic; }
	chain judge {
		ct state invalid drop
		ct state new meta nfproto ipv4 add @held4 { ip saddr ct count over 100 } drop
		ct state new meta nfproto ipv6 add @held6 { ip6 saddr ct count over 100 } drop
	}
	chain input {
		type filter hook input priority filter - 5; policy accept;
		jump judge
	}
	chain forward {
		type filter hook forward priority filter - 5; policy accept;
		jump judge
	}
}
`

// processCost is what a guard's program has taken; one that has ended shows elsewhere.
func processCost(pid int) Cost {
	c, _ := spent.Process(pid)
	return Cost{CPUSeconds: c.CPUSeconds, PeakRSSKiB: c.PeakRSSKiB}
}
