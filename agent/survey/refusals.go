package survey

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"ctguard/agent/procfile"
	"ctguard/policy"
)

// helperPorts are the ports whose conntrack helpers the kernel ships as modules: the flows they
// watch announce other flows, so they must stay tracked while the kernel assigns helpers by port. From
// net/netfilter/nf_conntrack_*.c.
var helperPorts = map[policy.Selector]string{
	{Protocol: policy.TCP, Port: 21}:    "nf_conntrack_ftp",
	{Protocol: policy.UDP, Port: 69}:    "nf_conntrack_tftp",
	{Protocol: policy.UDP, Port: 137}:   "nf_conntrack_netbios_ns",
	{Protocol: policy.UDP, Port: 161}:   "nf_conntrack_snmp",
	{Protocol: policy.TCP, Port: 1720}:  "nf_conntrack_h323",
	{Protocol: policy.UDP, Port: 1719}:  "nf_conntrack_h323",
	{Protocol: policy.TCP, Port: 1723}:  "nf_conntrack_pptp",
	{Protocol: policy.TCP, Port: 5060}:  "nf_conntrack_sip",
	{Protocol: policy.UDP, Port: 5060}:  "nf_conntrack_sip",
	{Protocol: policy.TCP, Port: 6566}:  "nf_conntrack_sane",
	{Protocol: policy.TCP, Port: 6667}:  "nf_conntrack_irc",
	{Protocol: policy.UDP, Port: 10080}: "nf_conntrack_amanda",
}

// FiltersOutput says whether rules of this host may refuse its own packets. Then a service that speaks again, long
// after it was asked, needs the entry of the question.
func (h *Host) FiltersOutput() (bool, error) {
	found, err := h.rewrites()
	return found.strict, err
}

// BySYN names the rules by which connections get in with their SYN alone, such as "tcp flags syn accept" or "! --syn -j
// DROP", so that one whose entry is gone is not picked up in the middle; empty if there are none. Of iptables-legacy it
// knows nothing.
func (h *Host) BySYN() (string, error) {
	found, err := h.rewrites()
	return found.bySYN, err
}

// SetsZones says whether rules of this host put traffic into conntrack zones, so that one address may be several
// sources.
func (h *Host) SetsZones() (bool, error) {
	found, err := h.rewrites()
	return slices.ContainsFunc(found.needs, func(e effect) bool { return e.kind == setsZone }), err
}

// Refused returns those of services that must stay tracked on this host, and why.
func (h *Host) Refused(services []policy.Selector) (map[policy.Selector]string, error) {
	found, err := h.rewrites()
	if err != nil {
		return nil, err
	}
	announced, ipvs, hidden := h.announced(found), h.balanced(), h.hiddenServices()
	multicast, byMark, here := h.routesMulticast(), sync.OnceValue(routesByMark), &addresses{read: h.locals}
	refused := make(map[policy.Selector]string)
	for _, s := range services {
		nat, need, module := found.natOf(s, multicast, here), found.needOf(s, multicast, byMark), h.helper(s)
		switch {
		case nat != "":
			refused[s] = "NAT on this host: " + nat
		case need != "":
			refused[s] = need
		case found.openedBy(s, multicast) != "":
			refused[s] = found.openedBy(s, multicast)
		case found.stopped.of(s, found.stoppedBy) != "":
			refused[s] = found.stopped.of(s, found.stoppedBy)
		case announced(s) != "":
			refused[s] = "a conntrack helper may expect connections to this ephemeral port: " + announced(s)
		case module != "":
			refused[s] = "a conntrack helper watches it: " + module
		case s.Whole() && found.proxied != "":
			refused[s] = "tproxy on this host: " + found.proxied // what leaves this host may have others' addresses
		case ipvs.takes(s):
			refused[s] = balances
		case hidden(s) != "":
			refused[s] = hidden(s)
		}
	}
	return refused, nil
}

// announced returns what names the rule by which a helper may expect connections to a port that something listens on
// for a moment, as an FTP server does for each transfer; empty for ports that no kernel gives to sockets which ask
// for none.
func (h *Host) announced(found rewrites) func(policy.Selector) string {
	i := slices.IndexFunc(found.needs, func(e effect) bool { return e.kind == setsHelper || e.kind == expects })
	low, high, err := h.ephemeral()
	return func(s policy.Selector) string {
		if first, last := s.Ports(); i >= 0 && err == nil && s.Protocol == policy.TCP && first >= low && last <= high {
			return found.needs[i].where
		}
		return ""
	}
}

// natOf names the rule that keeps s tracked for fear of a translation; empty if there is none.
func (r rewrites) natOf(s policy.Selector, multicast bool, here *addresses) string {
	// With one port and one remote side named, only a redirection of the port itself is left to fear.
	// With several ports it may be the remote side that answers what was translated.
	first, last := s.Ports()
	narrow := s.Remote.IsValid() && (first == last || s.Protocol == policy.ICMP)
	for _, e := range r.nat {
		if narrow && e.redirects(s, here) || !narrow && e.touches(s, multicast, here) {
			return e.where
		}
	}
	return ""
}

// helper names a conntrack helper that the kernel gives to one of a selector's ports by itself, if any; of several
// the first by name. The kernel does so where nf_conntrack_helper is 1, which is the default before Linux 4.7. Since
// Linux 6.0 there is no such setting: only rules assign helpers, and a module that is loaded does nothing.
func (h *Host) helper(s policy.Selector) (name string) {
	setting, err := procfile.Read(filepath.Join(h.proc, "sys/net/netfilter/nf_conntrack_helper"))
	if err != nil || strings.TrimSpace(string(setting)) == "0" {
		return ""
	}
	one := policy.Selector{Protocol: s.Protocol, Port: s.Port}
	for watched, module := range helperPorts {
		if watched != one && !s.PartlyCovers(watched) || name != "" && name <= module {
			continue
		}
		if _, err := os.Stat(filepath.Join(h.sys, "module", module)); err == nil {
			name = module
		}
	}
	return name
}

// routesMulticast says whether this host forwards multicast: whether the kernel lists interfaces of
// a multicast router below the header of ip_mr_vif (net/ipv4/ipmr.c) or ip6_mr_vif.
func (h *Host) routesMulticast() bool {
	return slices.ContainsFunc([]string{"ip_mr_vif", "ip6_mr_vif"}, func(file string) bool {
		text, err := procfile.Read(h.net(file))
		return err == nil && strings.Count(strings.TrimSpace(string(text)), "\n") > 0
	})
}
