package host

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"ctguard/policy"
)

// helperPorts are the ports whose conntrack helpers the kernel ships as modules: the flows they
// watch announce other flows, so they must stay tracked while the helper is loaded. From
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

// Refused returns those of services that must stay tracked on this host, and why.
func (h *Host) Refused(services []policy.Selector) (map[policy.Selector]string, error) {
	found, err := h.rewrites()
	if err != nil {
		return nil, err
	}
	multicast := h.routesMulticast()
	refused := make(map[policy.Selector]string)
	for _, s := range services {
		for _, t := range found.nat {
			// With one remote side named, only a redirection of the port itself is left to fear.
			if s.Remote.IsValid() && t.redirects(s) || !s.Remote.IsValid() && t.touches(s, multicast) {
				refused[s] = "NAT on this host: " + t.where
				break
			}
		}
		if refused[s] == "" {
			if module := h.helper(s); module != "" {
				refused[s] = "a conntrack helper watches it: " + module
			}
		}
	}
	return refused, nil
}

// helper names the loaded conntrack helper that watches a selector's port, if any.
func (h *Host) helper(s policy.Selector) string {
	module := helperPorts[policy.Selector{Protocol: s.Protocol, Port: s.Port}]
	if module == "" {
		return ""
	}
	if _, err := os.Stat(filepath.Join(h.sys, "module", module)); err != nil {
		return ""
	}
	return module
}

// routesMulticast says whether this host forwards multicast: whether the kernel lists interfaces of
// a multicast router below the header of ip_mr_vif (net/ipv4/ipmr.c) or ip6_mr_vif.
func (h *Host) routesMulticast() bool {
	return slices.ContainsFunc([]string{"ip_mr_vif", "ip6_mr_vif"}, func(file string) bool {
		text, err := os.ReadFile(h.net(file))
		return err == nil && strings.Count(strings.TrimSpace(string(text)), "\n") > 0
	})
}
