package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"ctguard/agent/conntrack"
	"ctguard/agent/sysctl"
	"ctguard/nft"
	"ctguard/nft/throwaway"
	"ctguard/policy"
)

// selfTest goes up to the top level and back in a throw-away namespace, with the privileges that the agent keeps and
// in the sandbox that it is in: what is refused there would be refused under attack. It returns once it needs no
// CAP_SYS_ADMIN any more.
func selfTest(root string, options []nft.Option) (wait func() error) {
	tried := throwaway.Start(func() error {
		if err := dropThreadPrivileges(); err != nil {
			return err
		}
		return errors.Join(tryRules(options), trySettings(root), tryTable())
	})
	return func() error {
		if err := tried(); err != nil {
			return fmt.Errorf("tried in a throw-away namespace: %w", err)
		}
		return nil
	}
}

// topPosture has one of each measure.
func topPosture(now time.Time) policy.Posture {
	soon := now.Add(time.Minute)
	return policy.Posture{
		DropInvalid: true, LimitRate: 1, LimitBurst: 1,
		Limits: []policy.Limit{
			{Prefix: netip.MustParsePrefix("198.51.100.0/24"), Until: soon},
			{Prefix: netip.MustParsePrefix("2001:db8::/64"), Kind: policy.Block, Until: soon},
		},
		Notrack: []policy.Untracked{
			{Selector: policy.Selector{Protocol: policy.TCP, Port: 80}, Stage: policy.Freed},
			{Selector: policy.Selector{Protocol: policy.ICMP}, Stage: policy.Freed},
		},
	}
}

// tryRules makes the rules of the top level and takes them back.
func tryRules(options []nft.Option) (err error) {
	table, err := nft.Open(options...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, table.Close()) }()
	now := time.Now()
	for _, uncounted := range []bool{false, true} {
		posture := topPosture(now)
		posture.Uncounted = uncounted
		if err := table.Apply(nft.Desired{Posture: posture, Allow: posture.Allow}, now); err != nil {
			return fmt.Errorf("rules: %w", err)
		}
	}
	return table.Apply(nft.Desired{}, now)
}

// trySettings writes a setting and puts it back.
func trySettings(root string) error {
	settings, err := sysctl.NewSettings(root + "/proc")
	if err != nil {
		return err
	}
	return settings.Try("nf_conntrack_tcp_loose")
}

// tryTable makes an entry and deletes it.
func tryTable() error {
	table, err := conntrack.Open()
	if err != nil {
		return err
	}
	defer table.Close()
	here, there := netip.MustParseAddrPort("192.0.2.1:22"), netip.MustParseAddrPort("192.0.2.2:1024")
	if _, err := table.Adopt(context.Background(), []conntrack.Flow{{Local: here, Remote: there}}, nil); err != nil {
		return err
	}
	of := conntrack.EntryFilter{Source: netip.PrefixFrom(there.Addr(), 32)}
	if _, err := table.Remove(context.Background(), of, nil, false, nil); err != nil {
		return err
	}
	n, err := table.Count()
	if err == nil && n > 0 {
		err = errors.New("an entry that was evicted is still there")
	}
	return err
}
