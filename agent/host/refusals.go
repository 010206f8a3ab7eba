package host

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/nftables"

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
	anything, redirect, err := h.nat()
	if err != nil {
		return nil, err
	}
	refused := make(map[policy.Selector]string)
	for _, s := range services {
		// Answers to masqueraded flows come to any port of this host. With one remote side named,
		// only a redirection of the port itself is left to fear.
		nat := anything
		if s.Remote.IsValid() {
			nat = redirect
		}
		if nat != "" {
			refused[s] = "NAT on this host: " + nat
			continue
		}
		module := helperPorts[policy.Selector{Protocol: s.Protocol, Port: s.Port}]
		if module == "" {
			continue
		}
		if _, err := os.Stat(filepath.Join(h.sys, "module", module)); err == nil {
			refused[s] = "a conntrack helper watches it: " + module
		}
	}
	return refused, nil
}

// nat names what may translate addresses in this namespace, and what may redirect packets to this
// host elsewhere; each is empty where nothing does.
func (h *Host) nat() (anything, redirect string, err error) {
	for _, file := range []string{"ip_tables_names", "ip6_tables_names"} {
		text, err := os.ReadFile(h.net(file))
		if err == nil && strings.Contains("\n"+string(text), "\nnat\n") {
			found := "iptables-legacy has a nat table (" + file + ")"
			return found, found, nil
		}
	}
	conn, err := nftables.New()
	if err != nil {
		return "", "", fmt.Errorf("look for nat chains: %w", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return "", "", fmt.Errorf("look for nat chains: %w", err)
	}
	for _, c := range chains {
		if c.Type != nftables.ChainTypeNAT {
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return "", "", fmt.Errorf("look for nat rules: %w", err)
		}
		if len(rules) == 0 {
			continue
		}
		anything = fmt.Sprintf("chain %s of table %s", c.Name, c.Table.Name)
		if c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookPrerouting {
			redirect = anything
		}
	}
	return anything, redirect, nil
}
