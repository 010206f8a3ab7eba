package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"ctguard/cmd/ctlab/internal/flood"
	"ctguard/cmd/ctlab/internal/measure"
	"ctguard/cmd/ctlab/internal/ns"
	"ctguard/cmd/ctlab/internal/role"
	"ctguard/cmd/ctlab/internal/service"
	rules "ctguard/nft"
	"ctguard/policy"
)

// DropCost is how many packets a second of one source network one processor sends and drops: by
// ctguard's own rules before conntrack, where the network is blocked or where a rate is left to it,
// and by a rule of the host's at input, after conntrack. Rates are medians, plain ratios those of rounds.
//
// The processor that sends is the one that receives, so a rate has the sender's own time in it.
// Ingress is therefore measured too, a drop at the link's ingress before the kernel has looked at
// the packet: the time per packet beyond that is what a way to drop costs, and the Net figures
// compare that. It is the receiving path from there on, the kernel's IP layer included, with small
// packets on a veth link; what a network card's driver takes would come on top of all alike, and on
// a machine where softirqs share the processor with other work a rate is that much lower.
type DropCost struct {
	Blocked float64 `json:"blocked_per_second"`
	Limited float64 `json:"limited_per_second"`
	Late    float64 `json:"late_per_second"`
	Ingress float64 `json:"ingress_per_second"`

	BlockedRatio float64 `json:"blocked_ratio"` // to Late
	LimitedRatio float64 `json:"limited_ratio"`
	// BlockedNet and LimitedNet are the time of Late to the time of the other, both beyond Ingress;
	// 0 where the machine was too busy to tell.
	BlockedNet float64 `json:"blocked_net_ratio"`
	LimitedNet float64 `json:"limited_net_ratio"`
}

// dropSlice is how long each flood lasts.
const dropSlice = 500 * time.Millisecond

// dropRounds is how many there are at most: each has four.
const dropRounds = 9

// droppedNet is whose packets are dropped.
var droppedNet = netip.MustParsePrefix("198.18.0.0/24")

// droppedSources is how many addresses of it send.
const droppedSources = 200

// hostDrop is how a host without ctguard drops a network.
const hostDrop = `
table inet lab {
	counter dropped { }
	chain input {
		type filter hook input priority filter - 1; policy accept;
		ip saddr 198.18.0.0/24 counter name dropped drop
	}
}
`

// ingressDrop drops it before anything else.
const ingressDrop = `
table netdev lab {
	counter dropped { }
	chain ingress {
		type filter hook ingress device "atk0" priority -500; policy accept;
		ip saddr 198.18.0.0/24 counter name dropped drop
	}
}
`

// dropWay is one way to drop: how it is put in place and taken back, and what counts.
type dropWay struct {
	begin, end     func() error
	table, counter string
}

// drops measures the ways to drop, in turn, on one site.
func (b *dataBench) drops(ctx context.Context) (err error) {
	b.Log("dropping %s before conntrack and after it", droppedNet)
	s, err := newStand("server")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	ours, err := rules.Open(rules.InNetNS(s.run.site.protected.FD()))
	if err != nil {
		return fmt.Errorf("open ctguard's table: %w", err)
	}
	defer func() { err = errors.Join(err, ours.Close()) }()
	ways := s.dropWays(ours)
	rates := make([][]float64, len(ways))
	for range min(b.Rounds, dropRounds) {
		for i, way := range ways {
			rate, err := s.absorbed(ctx, way)
			if err != nil {
				return err
			}
			rates[i] = append(rates[i], rate)
		}
	}
	d := dropCost(rates[0], rates[1], rates[2], rates[3])
	b.out.Drops = &d
	b.OnDrops(d)
	return nil
}

// dropCost makes figures of rates that were measured in rounds. The net ratios are of medians: in a
// single round the differences they are made of can be next to nothing.
func dropCost(blocked, limited, late, ingress []float64) DropCost {
	d := DropCost{
		Blocked: measure.Median(blocked), Limited: measure.Median(limited),
		Late: measure.Median(late), Ingress: measure.Median(ingress),
	}
	toLate := func(rates []float64) float64 {
		var ratios []float64
		for i, r := range rates {
			ratios = append(ratios, r/late[i])
		}
		return measure.Median(ratios)
	}
	net := func(rate float64) float64 {
		if rate >= d.Ingress {
			return 0
		}
		return (1/d.Late - 1/d.Ingress) / (1/rate - 1/d.Ingress)
	}
	d.BlockedRatio, d.BlockedNet = toLate(blocked), net(d.Blocked)
	d.LimitedRatio, d.LimitedNet = toLate(limited), net(d.Limited)
	return d
}

// dropWays are blocked, limited, late and ingress, in this order.
func (s *stand) dropWays(ours *rules.Table) []dropWay {
	held := func(kind policy.LimitKind) func() error {
		now := time.Now()
		limit := policy.Limit{Prefix: droppedNet, Kind: kind, Until: now.Add(time.Hour), Reason: "ctlab bench-data"}
		posture := policy.Posture{Limits: []policy.Limit{limit}, LimitRate: 10, LimitBurst: 10}
		return func() error { return ours.Apply(rules.Desired{Posture: posture}, now) }
	}
	released := func() error { return ours.Apply(rules.Desired{}, time.Now()) }
	load := func(ruleset string) func() error {
		return func() error { return nft(s.run.site.protected, ruleset) }
	}
	return []dropWay{
		{held(policy.Block), released, "inet ctguard", "blocked_dropped"},
		{held(policy.LimitNew), released, "inet ctguard", "limited_dropped"},
		{load(hostDrop), load("delete table inet lab\n"), "inet lab", "dropped"},
		{load(ingressDrop), load("delete table netdev lab\n"), "netdev lab", "dropped"},
	}
}

// absorbed floods the site from one processor and returns how many packets a second were dropped.
func (s *stand) absorbed(ctx context.Context, way dropWay) (rate float64, err error) {
	st := s.run.site
	if err := way.begin(); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, way.end()) }()
	before, err := dropped(st.protected, way.table, way.counter)
	if err != nil {
		return 0, err
	}
	res, err := s.saturate(ctx)
	if err != nil {
		return 0, err
	}
	after, err := dropped(st.protected, way.table, way.counter)
	if err != nil {
		return 0, err
	}
	if n := after - before; n > 0 && res.Seconds > 0 {
		return float64(n) / res.Seconds, nil
	}
	return 0, fmt.Errorf("of %d packets none was dropped by %s", res.Sent, way.table)
}

// saturate sends SYNs as fast as one processor can.
func (s *stand) saturate(ctx context.Context) (res flood.Result, err error) {
	st := s.run.site
	p, err := role.Spawn(st.attacker, flood.Role, flood.Spec{
		Kind: flood.SYN, Interface: st.near.dev, GatewayMAC: st.near.gateway, OneCore: true, Duration: dropSlice,
		Sources: droppedNet, Count: droppedSources, Forbidden: st.outside,
		Targets: []netip.AddrPort{netip.AddrPortFrom(st.near.targets[0], service.HTTPPort)},
	})
	if err != nil {
		return res, err
	}
	defer p.Kill()
	at := role.Now().Add(5 * time.Millisecond)
	if err := p.Start(at); err != nil {
		return res, err
	}
	if err := role.WaitUntil(ctx, at.Add(dropSlice)); err != nil {
		return res, err
	}
	return res, p.Stop(&res)
}

// dropped reads a named counter.
func dropped(n *ns.Namespace, table, counter string) (uint64, error) {
	var out, errs strings.Builder
	cmd := exec.Command("nft", append([]string{"-j", "list", "counters", "table"}, strings.Fields(table)...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := n.Start(cmd); err != nil {
		return 0, fmt.Errorf("start nft in %s: %w", n.Name(), err)
	}
	if err := cmd.Wait(); err != nil {
		return 0, fmt.Errorf("read counters in %s: %w: %s", n.Name(), err, errs.String())
	}
	var list struct {
		NFTables []struct {
			Counter *struct {
				Name    string `json:"name"`
				Packets uint64 `json:"packets"`
			} `json:"counter"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(out.String()), &list); err != nil {
		return 0, fmt.Errorf("read counters: %w", err)
	}
	for _, o := range list.NFTables {
		if o.Counter != nil && o.Counter.Name == counter {
			return o.Counter.Packets, nil
		}
	}
	return 0, fmt.Errorf("table %s has no counter %s", table, counter)
}
