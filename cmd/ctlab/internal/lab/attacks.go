package lab

import (
	"net/netip"
	"slices"
	"time"

	"ctguard/cmd/ctlab/internal/flood"
	"ctguard/cmd/ctlab/internal/service"
)

// Attack is one entry of the catalogue.
type Attack struct {
	Name       string
	Summary    string
	Topologies []string
	// Variant is set where this is another attack again, only from other sources or at other
	// times: a guard that does not look at these has nothing new to show.
	Variant bool
	// Crowd is set where the flood is no other than the handshake's, and only its crowd of sources is: it shows
	// something where a guard must judge sources, not where services go untracked or each source has a fixed limit.
	Crowd bool
	// OnDemand is set where the matrix leaves it out unless it is named: what it shows is about one lever.
	OnDemand bool

	kind    flood.Kind
	rate    int
	sources int          // 0: a random source for each packet
	ports   int          // ports per source, 0: all of them
	from    netip.Prefix // where sources are taken from, if not all of the side's
	port    uint16
	ipv6    bool
	span    int  // how many ports are hit, from port upwards; 0: port alone
	silent  bool // at targets that answer nothing
	far     bool // from the far side of a gateway
	speak   int  // segments a second on the connections that stand
	on, off time.Duration
	lasts   time.Duration // where the usual time would show too little
	briefly time.Duration // the least that shows anything, where that is no matter of rate
}

var (
	onServer  = []string{"server"}
	onQuiet   = []string{"overlay", "resolver", "listener", "loopback"}
	onShared  = []string{"shared-address", "load-balancers"}
	onGateway = []string{"nat-gateway"}
	onMixed   = []string{"mixed"}
	onRouters = []string{"nat-gateway", "one-way"}
	onZones   = []string{"zones"}
	atService = []string{"server", "forwarded", "by-state", "routed", "routed-open", "uplinks", "overlay"}
	onServers = []string{"server", "uplinks", "overlay", "resolver", "listener", "loopback", "by-state", "routed",
		"routed-open"}
	onBoth = []string{"server", "by-state", "routed-open"}
)

// clients4 are eight of the addresses that the server's ordinary clients come from.
var clients4 = netip.MustParsePrefix("203.0.113.16/29")

// scannedPort is what a scan looks for.
const scannedPort = 161

// Attacks is the catalogue, in the order in which it is shown.
var Attacks = []Attack{
	{
		Name: "handshake", Summary: "200 sources complete 5 000 handshakes a second and hold them",
		Topologies: onServers, kind: flood.Handshake, rate: 5000, sources: 200, port: service.HTTPPort,
	},
	{
		Name: "quiet", Summary: "ten datagrams a second of one flow: what the host and its users do by themselves",
		Topologies: onQuiet, kind: flood.UDP, rate: 10, sources: 1, ports: 1, port: service.UDPPort,
	},
	{
		Name: "handshake-wide", Summary: "the same from 1 000 sources, below most per-source limits",
		Variant: true, Topologies: onServer, kind: flood.Handshake, rate: 5000, sources: 1000, port: service.HTTPPort,
	},
	{
		Name: "handshake6", Summary: "the same over IPv6, from 200 networks of /64",
		Variant: true, Topologies: onServer, kind: flood.Handshake, rate: 5000, sources: 200, port: service.HTTPPort,
		ipv6: true,
	},
	{
		Name: "newcomers", Summary: "3 000 newcomers hold 12 connections each, fewer than most ordinary users",
		Variant: true, Crowd: true, Topologies: onBoth, kind: flood.Handshake, rate: 6000, sources: 3000, ports: 12,
		port: service.HTTPPort,
	},
	{
		Name: "customer6", Summary: "one customer uses 5 000 networks of /64 in its /48, and holds 7 connections in each",
		Variant: true, Crowd: true, Topologies: onServer, kind: flood.Handshake, rate: 6000, sources: 5000, ports: 7,
		port: service.HTTPPort, ipv6: true,
	},
	{
		Name: "bots", Summary: "400 bots hold 100 connections each, fewer than the address that many users share",
		Variant: true, Crowd: true, Topologies: onShared, kind: flood.Handshake, rate: 6000, sources: 400, ports: 100,
		port: service.HTTPPort,
	},
	{
		Name: "speakers", Summary: "the handshake flood, whose connections go on speaking: what is evicted comes back",
		OnDemand: true, Topologies: onServer, kind: flood.Handshake, rate: 5000, sources: 200, port: service.HTTPPort,
		speak: 20_000,
	},
	{
		Name: "pulses", Summary: "the handshake flood, 4 s on and 6 s off",
		Variant: true, Topologies: onServer, kind: flood.Handshake, rate: 5000, sources: 200, port: service.HTTPPort,
		on: 4 * time.Second, off: 6 * time.Second, lasts: 24 * time.Second, briefly: 14 * time.Second,
	},
	{
		Name: "udp", Summary: "200 sources, 300 flows each, to an open UDP port, used again and again",
		Topologies: onServer, kind: flood.UDP, rate: 20000, sources: 200, ports: 300, port: service.UDPPort,
	},
	{
		Name: "udp-names", Summary: "the same in the names of the addresses that ordinary clients come from",
		OnDemand: true, Topologies: onServer, kind: flood.UDP, rate: 20000, sources: 8, ports: 7500, port: service.UDPPort,
		from: clients4,
	},
	{
		Name: "udp-spoofed", Summary: "UDP to an open port, each packet from a random address",
		Topologies: atService, kind: flood.UDP, rate: 50000, port: service.UDPPort,
	},
	{
		Name:       "udp-ports",
		Summary:    "UDP to 10 001 ports that are open and that nobody listens on, each from a random address",
		Topologies: onServer, kind: flood.UDP, rate: 50000, port: unusedPort, span: unusedPorts,
	},
	{
		Name: "syn-spoofed", Summary: "SYNs to an open port, each from a random address",
		Topologies: atService, kind: flood.SYN, rate: 50000, port: service.HTTPPort,
	},
	{
		Name: "ack", Summary: "stray ACKs to an open port, each from a random address",
		Topologies: onServer, kind: flood.ACK, rate: 50000, port: service.HTTPPort,
	},
	{
		Name: "nat-user", Summary: "one user of the gateway opens 5 000 connections a second and holds them",
		Topologies: onGateway, kind: flood.Handshake, rate: 5000, sources: 1, port: service.HTTPPort,
	},
	{
		Name: "nat-users", Summary: "200 users of the gateway, together 5 000 connections a second",
		Variant: true, Topologies: onGateway, kind: flood.Handshake, rate: 5000, sources: 200, port: service.HTTPPort,
	},
	{
		Name: "nat-user6", Summary: "one inside /64 opens 5 000 connections a second over IPv6, each from another address",
		Variant: true, Topologies: onGateway, kind: flood.Handshake, rate: 5000, from: insideUser6, port: service.HTTPPort,
		ipv6: true,
	},
	{
		Name: "nat-udp", Summary: "20 users of the gateway, 3 000 UDP flows each, used again and again",
		Topologies: onGateway, kind: flood.UDP, rate: 20000, sources: 20, ports: 3000, port: service.UDPPort,
	},
	{
		Name: "nat-scan", Summary: "20 users of the gateway, 1 000 UDP flows a second each, to where nobody answers",
		Topologies: onGateway, kind: flood.UDP, rate: 20000, sources: 20, port: service.UDPPort, silent: true,
	},
	{
		Name: "scan", Summary: "a container and one of many users behind another one scan, 10 000 UDP flows a second each",
		Topologies: onMixed, kind: flood.UDP, rate: 20000, sources: 2, from: scanners, port: scannedPort, silent: true,
	},
	{
		Name: "sweep", Summary: "the same with SYNs to the port that they use themselves, at addresses that do not answer",
		Variant: true, Topologies: onMixed, kind: flood.SYN, rate: 20000, sources: 2, from: scanners,
		port: service.HTTPPort, silent: true,
	},
	{
		Name: "scan-ports", Summary: "the same with UDP to 10 001 ports",
		Variant: true, Topologies: onMixed, kind: flood.UDP, rate: 20000, sources: 2, from: scanners,
		port: unusedPort, span: unusedPorts, silent: true,
	},
	{
		Name: "nat-ack", Summary: "stray ACKs through the gateway, each from a random inside address, never answered",
		Topologies: onRouters, kind: flood.ACK, rate: 20000, port: service.HTTPPort, silent: true,
	},
	{
		// Over IPv6: where addresses are translated, a protocol without ports has one flow for each
		// outside address, and the kernel refuses the rest.
		Name:       "odd-protocol",
		Summary:    "packets of protocol 253, without ports, each from a random inside address over IPv6, never answered",
		Topologies: onGateway, kind: flood.Odd, rate: 20000, ipv6: true, silent: true,
	},
	{
		Name: "tenant", Summary: "6 sources of another tenant, with addresses that clients have as well, " +
			"complete 5 000 handshakes a second and hold them",
		Topologies: onZones, kind: flood.Handshake, rate: 5000, sources: 6, port: service.HTTPPort,
	},
	{
		Name: "tenant-udp", Summary: "the same with UDP, 8 000 flows each, used again and again",
		Variant: true, Topologies: onZones, kind: flood.UDP, rate: 20000, sources: 6, ports: 8000, port: service.UDPPort,
	},
	{
		Name: "forwarded", Summary: "200 outside sources hold 5 000 handshakes a second on the forwarded port",
		Topologies: onGateway, kind: flood.Handshake, rate: 5000, sources: 200, port: forwardedPort, far: true,
	},
}

func attackNamed(name string) (Attack, bool) {
	i := slices.IndexFunc(Attacks, func(a Attack) bool { return a.Name == name })
	if i < 0 {
		return Attack{}, false
	}
	return Attacks[i], true
}

func (a Attack) runsOn(topology string) bool { return slices.Contains(a.Topologies, topology) }

// spec is the flood on a site, with the scenario's own numbers in it.
func (a Attack) spec(sc Scenario, s *site) flood.Spec {
	from := s.near
	if a.far {
		from = s.far
	}
	sp := flood.Spec{
		Kind: a.kind, Interface: from.dev, GatewayMAC: from.gateway,
		Sources: from.sources4, Count: a.sources, Ports: a.ports,
		Speak: a.speak, Rate: a.rate, Duration: sc.AttackFor, On: a.on, Off: a.off,
		TargetPorts: a.span, Forbidden: s.outside,
	}
	if a.ipv6 {
		sp.Sources = from.sources6
	}
	if a.from.IsValid() {
		sp.Sources = a.from
	}
	targets := from.targets
	if a.silent {
		targets = from.silent
	}
	for _, t := range targets {
		if t.Is6() == a.ipv6 {
			sp.Targets = append(sp.Targets, netip.AddrPortFrom(t, a.port))
		}
	}
	if sc.Rate > 0 {
		sp.Rate = sc.Rate
	}
	if sc.Sources > 0 && a.sources > 0 {
		sp.Count = sc.Sources
	}
	return sp
}

// AttackSummary is an attack in a sentence, or its name where it is not in the catalogue.
func AttackSummary(name string) string {
	if a, ok := attackNamed(name); ok {
		return a.Summary
	}
	return name
}

// AttacksOn is the attacks that run on a topology.
func AttacksOn(topology string) []Attack {
	return slices.DeleteFunc(slices.Clone(Attacks), func(a Attack) bool { return !a.runsOn(topology) })
}
