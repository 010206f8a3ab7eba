package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"ctguard/nft/throwaway"
	"ctguard/policy"
)

// Capabilities says what the running kernel's nftables can do. What a table of this package cannot
// do without is in Rules; the rest is optional.
type Capabilities struct {
	Rules bool // every kind of set and rule that Apply makes, those of the rest apart
	// a table can belong to a socket (since 5.12); without it a killed process leaves the table behind, see Leftover
	Owner    bool
	Reject   bool // packets can be rejected at prerouting (since 5.9), for Posture.Reject
	Socket   bool // the expression socket, for dropping what no socket waits for
	Synproxy bool // the statement synproxy
	Cookies  bool // SYN cookies for forwarded services: translation at output, synproxy at forward, options of TCP in sets
	Forward  bool // what forwarded services need: routes by fib, packets that are written to and that take out of sets
}

// Probe tries each capability in a network namespace made for it, which is gone when Probe returns.
// It needs CAP_SYS_ADMIN and CAP_NET_ADMIN; an error means that nothing was learnt.
func Probe() (Capabilities, error) { return StartProbe()() }

// StartProbe begins to probe and returns once that needs no CAP_SYS_ADMIN any more. wait returns what was found, once.
// A daemon that starts waits for it, and the kernel lets each change of rules wait: so all are tried at once.
func StartProbe() (wait func() (Capabilities, error)) {
	c := new(Capabilities)
	probes := []probe{
		{&c.Owner, "flag owner", func(b *batch) { b.unowned = false; b.conn.AddTable(b.table()) }},
		{&c.Rules, "rules", probeRules},
		{&c.Reject, "reject", probeReject},
		{&c.Socket, "socket", probeSocket},
		{&c.Synproxy, "synproxy", probeSynproxy},
		{&c.Forward, "forward", probeForward},
		{&c.Cookies, "cookies", probeCookies},
	}
	waits := make([]func() error, len(probes))
	for i, p := range probes {
		waits[i] = throwaway.Start(p.try)
	}
	return func() (Capabilities, error) {
		var errs []error
		for i, p := range probes {
			if err := waits[i](); err != nil {
				errs = append(errs, fmt.Errorf("probe nftables: %s: %w", p.name, err))
			}
		}
		return *c, errors.Join(errs...)
	}
}

// probe is one capability to find out.
type probe struct {
	found *bool
	name  string
	queue func(*batch)
}

// try tries a capability in the calling thread's namespace.
func (p probe) try() error {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("open nftables socket: %w", err)
	}
	defer conn.CloseLasting()
	b := newBatch(conn, true)
	p.queue(b)
	err = b.flush()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ENOBUFS) {
		return err
	}
	*p.found = err == nil
	return nil
}

// probeRules makes the table of a posture that has one of each.
func probeRules(b *batch) {
	now := time.Now()
	d := Desired{
		Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		Posture: policy.Posture{
			DropInvalid: true, LimitRate: 1, LimitBurst: 1,
			Limits: []policy.Limit{
				{Prefix: netip.MustParsePrefix("198.51.100.0/24"), Until: now.Add(time.Minute)},
				{Prefix: netip.MustParsePrefix("2001:db8::/64"), Kind: policy.Block, Until: now.Add(time.Minute)},
			},
			Notrack: []policy.Untracked{
				{Selector: policy.Selector{Protocol: policy.TCP, Port: 80}, Stage: policy.Freed},
				{Selector: policy.Selector{Protocol: policy.ICMP}, Stage: policy.Freed},
				{Selector: policy.Selector{Group: true}, Stage: policy.Freed},
			},
		},
	}
	var keep retained
	want := d.ruleset(now, &keep)
	b.create(&want, now)
}

// exampleForwards are forwarded services of a protocol, one of each family.
func exampleForwards(proto policy.Protocol) (list []policy.Selector) {
	outer := map[bool]netip.Addr{false: netip.MustParseAddr("192.0.2.1"), true: netip.MustParseAddr("2001:db8::1")}
	inner := map[bool]netip.Addr{false: netip.MustParseAddr("192.0.2.2"), true: netip.MustParseAddr("2001:db8::2")}
	for _, v6 := range []bool{false, true} {
		list = append(list, policy.Selector{
			Protocol: proto, Port: 80, Local: netip.PrefixFrom(outer[v6], outer[v6].BitLen()), Uplink: "wan",
			Inside: netip.AddrPortFrom(inner[v6], 8080)})
	}
	return list
}

// probeForward makes the table of a posture with forwarded services of both families and protocols.
func probeForward(b *batch) {
	var d Desired
	for _, s := range slices.Concat(exampleForwards(policy.TCP), exampleForwards(policy.UDP)) {
		d.Posture.Notrack = append(d.Posture.Notrack, policy.Untracked{Stage: policy.Freed, Selector: s})
	}
	var keep retained
	want := d.ruleset(time.Now(), &keep)
	b.create(&want, time.Now())
}

// probeCookies makes the table of a posture with forwarded services of both families behind synproxy.
func probeCookies(b *batch) {
	services := exampleForwards(policy.TCP)
	d := Desired{Posture: policy.Posture{Synproxy: services, Learn: services,
		InsideMSS: map[policy.Selector]uint16{services[0]: 1460, services[1]: 1440}}}
	var keep retained
	want := d.ruleset(time.Now(), &keep)
	b.create(&want, time.Now())
}

func probeReject(b *batch) { probeRule(b, nftables.ChainHookPrerouting, nil, reject()) }

func probeSocket(b *batch) {
	const wildcard = expr.SocketKeyWildcard
	probeRule(b, nftables.ChainHookPrerouting, nil,
		statement{exprs: []expr.Any{&expr.Socket{Key: wildcard, Register: reg}}})
}

func probeSynproxy(b *batch) {
	synproxy := &expr.SynProxy{Mss: 1460, MssValueSet: true, Wscale: 7, WscaleValueSet: true, Timestamp: true,
		SackPerm: true}
	probeRule(b, nftables.ChainHookInput, []statement{opensTCP()}, statement{exprs: []expr.Any{synproxy}})
}

// probeRule makes a table with one rule.
func probeRule(b *batch, at *nftables.ChainHook, matches []statement, c statement) {
	b.conn.AddTable(b.table())
	b.makeEmpty(&ruleset{}, chain{name: "probe", hook: &hook{num: at, priority: beforeRaw}})
	b.conn.AddRule(b.rule("probe", newRule(append(matches, c)...)))
	b.note(nil)
}
