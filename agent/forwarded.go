package agent

import (
	"context"
	"errors"
	"net/netip"

	"ctguard/agent/conntrack"
	"ctguard/nft"
	"ctguard/policy"
)

// adoptEnding gives connections to inside hosts that are to be tracked again their entries, while they still live
// untracked: were the inside host the first to speak then, conntrack would take it for the one who opened the
// connection, and give its packets another port than the client knows.
func (l *live) adoptEnding(d nft.Desired) error {
	ending, err := l.Ending(d)
	if len(ending) == 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), adoptPatience)
	defer cancel()
	_, failed := l.AdoptForwarded(ctx, forwardedFlows(ending), l.adopting)
	if errors.Is(failed, conntrack.ErrTableFull) {
		failed = nil // nothing more can be done
	}
	return errors.Join(err, failed)
}

// forwardedFlows makes connections of services and their clients.
func forwardedFlows(ending map[policy.Selector][]netip.AddrPort) []conntrack.ForwardedFlow {
	var flows []conntrack.ForwardedFlow
	for s, clients := range ending {
		for _, client := range clients {
			flows = append(flows, conntrack.ForwardedFlow{Client: client, Outside: outside(s), Inside: s.Inside,
				UDP: s.Protocol == policy.UDP})
		}
	}
	return flows
}

// outside is where clients of a forwarded service send to.
func outside(s policy.Selector) netip.AddrPort { return netip.AddrPortFrom(s.Local.Addr(), s.Port) }

// loosening has the entries of forwarded TCP services check no windows any more, as soon as they are untracked; see
// [conntrack.Table.Loosen].
func (l *loop) loosening() walk {
	var due []netip.AddrPort
	loosened := make(map[policy.Selector]bool)
	for _, n := range l.decision.Posture.Notrack {
		s := n.Selector
		if !s.Forwarded() || !s.OfTCP() || n.Stage < policy.Trial {
			continue
		}
		loosened[s] = true
		if !l.loosened[s] {
			due = append(due, outside(s))
		}
	}
	l.loosened = loosened
	if len(due) == 0 {
		return nil
	}
	return loosenWalk{due}
}

// loosenWalk loosens the entries of services.
type loosenWalk struct{ services []netip.AddrPort }

func (s loosenWalk) do(ctx context.Context, w walker) func(*loop) {
	_, err := w.mover.loosen(ctx, s.services)
	return func(l *loop) { l.trouble("loosen", err) }
}

func (l *live) loosen(ctx context.Context, services []netip.AddrPort) (int, error) {
	return l.Loosen(ctx, services, l.retiming)
}

func (*dryEntries) loosen(context.Context, []netip.AddrPort) (int, error) { return 0, nil }
