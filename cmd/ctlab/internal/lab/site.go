package lab

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"

	"github.com/mdlayher/netlink"

	"ctguard/cmd/ctlab/internal/ns"
	"ctguard/cmd/ctlab/internal/packet"
	"ctguard/cmd/ctlab/internal/role"
	"ctguard/cmd/ctlab/internal/service"
)

// side is one of the attacker's links.
type side struct {
	dev                string
	gateway            packet.MAC
	sources4, sources6 netip.Prefix
	targets            []netip.Addr
	silent             []netip.Addr // targets that answer nothing
}

// link is one end of one.
type link struct {
	in  *ns.Namespace
	dev string
}

// site is a topology that stands: its namespaces, and who is where.
type site struct {
	spaces []*ns.Namespace
	// outside is the namespace ctlab was started in, which nothing may touch.
	outside string

	protected *ns.Namespace // where the table and the guard are
	clients   *ns.Namespace
	attacker  *ns.Namespace
	serving   []*ns.Namespace // where the services are

	// near is where attacks come from; far is the other side of a gateway.
	near, far side

	clientAddrs   []netip.Addr
	session       netip.Addr
	clientTargets []netip.Addr

	// background is where the ordinary users' entries lead: from these sources to
	// these addresses and ports.
	backgroundFrom netip.Prefix
	backgroundTo   []netip.AddrPort
	backgroundZone uint16
	// masquerade is the address that background entries show to the outside, if
	// the host translates addresses.
	masquerade netip.Addr

	// inside is the address space that must not be seen outside of the gateway, and outer
	// the links where that is looked at: the far ends.
	inside []netip.Prefix
	outer  []link

	// parties are others whose service is measured.
	parties []party

	// overlay has the services be the far end of a tunnel, too.
	overlay bool
	// listener is somebody who asks for the kernel's events on entries and reads none.
	listener *netlink.Conn

	// config is what ctguard is told about this topology.
	config map[string]any
}

// topologies builds each topology; the key is its name.
var topologies = map[string]func(*site) error{
	"load-balancers": buildBalanced,
	"one-way":        buildOneWay,
	"server":         buildServer,
	"shared-address": buildShared,
	"nat-gateway":    buildGateway,
	"forwarded":      forwardedBy(openedByPort),
	"by-state":       forwardedBy(openedByState),
	"routed":         routedBy(openedByPort),
	"routed-open":    routedBy(openedToAll),
	"mixed":          buildMixed,
	"overlay":        buildOverlay,
	"resolver":       buildResolver,
	"listener":       buildListener,
	"loopback":       buildLoopback,
	"uplinks":        buildUplinks,
	"zones":          buildZones,
}

// Topologies says what each topology is.
var Topologies = map[string]string{
	"load-balancers": "the server, where all clients come from two load balancers and bots go around them",
	"nat-gateway": "a gateway that masquerades a network of thousands and forwards a port into it; " +
		"attackers on both sides",
	"one-way":     "a router that sees what clients send and never the answers (direct server return, asymmetric routes)",
	"mixed":       "a host that serves, and masquerades containers, of which one scans, and one has many users behind it",
	"overlay":     "the server, that another host reaches by a tunnel whose directions are flows of their own (VXLAN)",
	"resolver":    "the server, that asks DNS servers 8 000 questions a second itself while it is attacked",
	"listener":    "the server, where a listener to the kernel's events is stuck, so that ended entries stay counted",
	"loopback":    "the server, with a local proxy that opens 3 000 connections a second by way of lo all the while",
	"forwarded":   "a gateway whose services are on a host behind it; attackers and clients behind one uplink",
	"by-state":    "forwarded, with a filter that lets the services in because they were translated (ct status dnat)",
	"routed":      "a router without NAT, whose filter names the services behind it; else as forwarded",
	"routed-open": "the same with a filter that lets in all that comes, so that nobody knows what is a service",
	"shared-address": "the server, where all clients come from one address (CGNAT): " +
		"300 lasting connections and 60 new ones a second",
	"uplinks": "the server with a second uplink, whose clients are answered by way of it: connection marks say so",
	"zones":   "a router for two tenants with the same addresses, each in a zone of its own, of whom one floods",
	"server":  "a host with a stateful ruleset and services of its own; attackers on one side, clients on the other",
}

func newSite(topology string) (*site, error) {
	outside, err := ns.Current()
	if err != nil {
		return nil, fmt.Errorf("read own namespace: %w", err)
	}
	s := &site{outside: outside}
	if err := topologies[topology](s); err != nil {
		s.close()
		return nil, fmt.Errorf("build topology %s: %w", topology, err)
	}
	return s, nil
}

// addAll makes the namespaces that every topology has.
func (s *site) addAll() (err error) {
	if s.attacker, err = s.add("attacker"); err != nil {
		return err
	}
	if s.protected, err = s.add("protected"); err != nil {
		return err
	}
	s.clients, err = s.add("clients")
	return err
}

// add makes a namespace with the settings that every one of the lab's needs.
func (s *site) add(name string) (*ns.Namespace, error) {
	n, err := ns.New(name)
	if err != nil {
		return nil, err
	}
	s.spaces = append(s.spaces, n)
	return n, n.Sysctl(map[string]string{
		"net.ipv4.conf.all.rp_filter":         "0",
		"net.ipv4.conf.default.rp_filter":     "0",
		"net.ipv6.conf.default.accept_ra":     "0",
		"net.ipv6.conf.default.dad_transmits": "0",
	})
}

func (s *site) close() {
	if s.listener != nil {
		_ = s.listener.Close() // nothing is written by closing
	}
	for _, n := range s.spaces {
		n.Close()
	}
}

// serve starts the services; those that started are returned even where one did not.
func (s *site) serve() ([]*role.Process, error) {
	var out []*role.Process
	for _, space := range s.serving {
		p, err := role.Spawn(space, service.Role, service.Spec{Overlay: s.overlay})
		if err != nil {
			return out, err
		}
		out = append(out, p)
	}
	return out, nil
}

// nft loads a ruleset in a namespace, as an administrator would.
func nft(n *ns.Namespace, ruleset string) error {
	var out strings.Builder
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(ruleset)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := n.Start(cmd); err != nil {
		return fmt.Errorf("start nft in %s: %w", n.Name(), err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("load ruleset in %s: %w: %s", n.Name(), err, strings.TrimSpace(out.String()))
	}
	return nil
}

// mac is a locally administered address, different for each link and end.
func mac(link, end byte) packet.MAC { return packet.MAC{0x02, 0x63, 0x74, 0, link, end} }

func hw(m packet.MAC) net.HardwareAddr { return m[:] }

// addrs are n addresses of a prefix, from its first-th.
func addrs(prefix string, first, n int) []netip.Addr {
	a := netip.MustParsePrefix(prefix).Addr()
	for range first {
		a = a.Next()
	}
	out := make([]netip.Addr, 0, n)
	for range n {
		out = append(out, a)
		a = a.Next()
	}
	return out
}

// onLink gives addresses the prefix of their link.
func onLink(as []netip.Addr) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(as))
	for _, a := range as {
		if a.Is4() {
			out = append(out, netip.PrefixFrom(a, 24))
		} else {
			out = append(out, netip.PrefixFrom(a, 64))
		}
	}
	return out
}
