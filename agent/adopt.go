package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"ctguard/agent/conntrack"
	"ctguard/agent/state"
	"ctguard/agent/survey"
	"ctguard/nft"
	"ctguard/policy"
)

// Bounds of one adoption: how many connections it lists, and how long it may take when the agent ends.
const (
	mostAdopted   = 1 << 20
	adoptPatience = 10 * time.Second
	adoptPause    = time.Second // before another try
)

// adoption gives the connections of services that lived untracked their entries, once per tick at
// most: what policy makes of it shows only then.
func (l *loop) adoption() walk {
	selectors := l.decision.Posture.Adopt
	if len(selectors) == 0 {
		l.trouble("adopt connections", nil) // none is waiting any more: they went untracked again
		return nil
	}
	if l.adopted.After(l.last.Time) || time.Now().Before(l.adoptAgain) {
		return nil
	}
	return adoptWalk{selectors}
}

// adoptWalk gives connections of selectors their entries.
type adoptWalk struct{ selectors []policy.Selector }

func (a adoptWalk) do(ctx context.Context, w walker) func(*loop) {
	began := time.Now()
	n, err := w.mover.adopt(ctx, a.selectors)
	return func(l *loop) {
		if l.trouble("adopt connections", err); err != nil {
			l.adoptAgain = time.Now().Add(adoptPause) // they still need entries
		} else {
			l.adopted, l.due = began, true
		}
		if n > 0 {
			l.emit(policy.Event{Kind: policy.StepEvent, Step: policy.Notrack, Entries: n, Reason: adopted(n)})
		}
	}
}

// adopt lists the connections of the selectors and gives them entries.
func (l *live) adopt(ctx context.Context, selectors []policy.Selector) (int, error) {
	found, err := l.connections(portsOf(selectors), mostAdopted)
	if err != nil {
		return 0, err
	}
	return l.Adopt(ctx, flowsOf(found, selectors), l.adopting)
}

// portsOf returns the ports of selectors as [survey.Host.Established] takes them.
func portsOf(selectors []policy.Selector) map[uint16]bool {
	ports := make(map[uint16]bool)
	for _, s := range selectors {
		if s.Whole() {
			return map[uint16]bool{0: true}
		}
		first, last := s.Ports()
		for port := int(first); port <= int(last); port++ {
			ports[uint16(port)] = true
		}
	}
	return ports
}

// flowsOf returns those of the connections that one of the selectors is about. A socket does not say by
// which interface its packets go, and connections that were tracked all the time keep the entries
// they have, so interfaces make no difference here.
func flowsOf(found []survey.Live, selectors []policy.Selector) []conntrack.Flow {
	flows := make([]conntrack.Flow, 0, len(found))
	for _, c := range found {
		if c.Remote.Addr().IsLoopback() {
			continue
		}
		ours, named := false, false
		for _, s := range selectors {
			if lives(c, s) {
				ours, named = true, named || !s.Whole()
			}
		}
		if ours {
			// To a port that a selector names others connect, even if nothing listens there any more.
			flows = append(flows, conntrack.Flow{Local: c.Local, Remote: c.Remote, Outgoing: c.Outgoing && !named,
				Scaled: c.Scales.Agreed, LocalScale: c.Scales.Local, RemoteScale: c.Scales.Remote})
		}
	}
	return flows
}

// lives says whether a selector is about a connection.
func lives(c survey.Live, s policy.Selector) bool {
	first, last := s.Ports()
	port := c.Local.Port()
	return first <= port && port <= last &&
		(!s.Remote.IsValid() || s.Remote.Contains(c.Remote.Addr())) &&
		(!s.Local.IsValid() || s.Local.Contains(c.Local.Addr()))
}

// untracked returns the TCP selectors of a posture whose connections live untracked and are this host's own.
func untracked(p policy.Posture) []policy.Selector {
	list := slices.Clone(p.Adopt)
	for _, n := range p.Notrack {
		if n.Selector.OfTCP() && !n.Selector.Forwarded() && n.Stage != policy.Watched && !slices.Contains(list, n.Selector) {
			list = append(list, n.Selector)
		}
	}
	return list
}

// retrack takes all rules away: what lives untracked gets its entries first, and what was opened
// meanwhile right after.
func (l *loop) retrack(w walker) error {
	ctx, cancel := context.WithTimeout(context.Background(), adoptPatience)
	defer cancel()
	l.takeLastCookies()
	selectors := untracked(l.decision.Posture)
	if len(selectors) > 0 {
		_, err := w.mover.adopt(ctx, selectors)
		l.trouble("adopt connections", err)
	}
	err := l.actuator.rules(nft.Desired{}, time.Now())
	if len(selectors) > 0 {
		_, late := w.mover.adopt(ctx, selectors)
		l.trouble("adopt connections", late)
		if errors.Is(late, conntrack.ErrTableFull) {
			late = nil // told, and nothing more can be done: the way out has not failed
		}
		err = errors.Join(err, late, l.state.NoteUntracked(nil))
	}
	return err
}

// takeLastCookies has synproxy answer no more handshakes, and waits for those under way.
func (l *loop) takeLastCookies() {
	p := l.decision.Posture
	if len(p.Synproxy) == 0 || l.dryRun {
		return
	}
	p.LastCookies = true
	if err := l.actuator.rules(nft.Desired{Posture: p, Allow: p.Allow}, time.Now()); err == nil {
		time.Sleep(policy.LastCookiesFor)
	}
}

// adoptOrphans gives the connections entries that an earlier process left untracked.
func (l *loop) adoptOrphans(w walker) {
	n, err := adoptNoted(l.state, w.mover.adopt)
	l.trouble("adopt connections of an earlier run", err)
	if n > 0 {
		l.emit(policy.Event{Kind: policy.RepairEvent, Entries: n, Reason: "left by an earlier run: " + adopted(n)})
	}
}

// adopted says what adoptNoted did.
func adopted(n int) string {
	return fmt.Sprintf("%d connections that lived untracked given entries", n)
}

// adoptNoted gives the connections entries that a note says live untracked, and takes the note away.
func adoptNoted(d *state.Dir, adopt func(context.Context, []policy.Selector) (int, error)) (int, error) {
	selectors, there, err := d.Untracked()
	if !there {
		return 0, err
	}
	n := 0
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), adoptPatience)
		defer cancel()
		n, err = adopt(ctx, selectors)
	}
	return n, errors.Join(err, d.ForgetUntracked())
}
