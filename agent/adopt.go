package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"ctguard/agent/conntrack"
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
func (a *Agent) adoption() walk {
	selectors := a.decision.Posture.Adopt
	if len(selectors) == 0 || a.adopted.After(a.last.Time) || time.Now().Before(a.adoptAgain) {
		return nil
	}
	return func(ctx context.Context) func(*Agent) {
		began := time.Now()
		n, err := a.actuator.adopt(ctx, selectors)
		return func(a *Agent) {
			if a.trouble("adopt connections", err); err != nil {
				a.adoptAgain = time.Now().Add(adoptPause) // they are still owed
			} else {
				a.adopted, a.due = began, true
			}
			if n > 0 {
				a.emit(policy.Event{Kind: policy.StepEvent, Step: policy.NotrackStep, Entries: n,
					Reason: adopted(n)})
			}
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

// untracked returns the TCP selectors of a posture whose connections live untracked.
func untracked(p policy.Posture) []policy.Selector {
	list := slices.Clone(p.Adopt)
	for _, n := range p.Notrack {
		if n.Selector.OfTCP() && n.Stage != policy.Watched && !slices.Contains(list, n.Selector) {
			list = append(list, n.Selector)
		}
	}
	return list
}

// retrack takes all rules away: what lives untracked gets its entries first, and what was opened
// meanwhile right after.
func (a *Agent) retrack() error {
	ctx, cancel := context.WithTimeout(context.Background(), adoptPatience)
	defer cancel()
	a.takeLastCookies()
	selectors := untracked(a.decision.Posture)
	if len(selectors) > 0 {
		_, err := a.actuator.adopt(ctx, selectors)
		a.trouble("adopt connections", err)
	}
	err := a.actuator.rules(nft.Desired{}, time.Now())
	if len(selectors) > 0 {
		_, late := a.actuator.adopt(ctx, selectors)
		err = errors.Join(err, late, a.note(nil))
	}
	return err
}

// takeLastCookies has synproxy answer no more handshakes, and waits for those under way.
func (a *Agent) takeLastCookies() {
	p := a.decision.Posture
	if len(p.Synproxy) == 0 || a.dryRun {
		return
	}
	p.LastCookies = true
	if err := a.actuator.rules(nft.Desired{Posture: p, Allow: a.facts.Allow}, time.Now()); err == nil {
		time.Sleep(policy.LastCookiesFor)
	}
}

// notePath returns where it is noted which services live untracked: after a kill -9 the next start must
// know.
func (a *Agent) notePath() string { return a.config.notePath() }

func (c Config) notePath() string { return filepath.Join(c.StateDir, "untracked.json") }

// note writes down which services live untracked, before they do. A reboot ends all connections, so
// the note need not outlive one.
func (a *Agent) note(selectors []policy.Selector) error {
	if a.dryRun || slices.Equal(selectors, a.noted) {
		return nil
	}
	var err error
	if len(selectors) == 0 {
		if err = os.Remove(a.notePath()); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	} else if text, fault := json.Marshal(selectors); fault == nil {
		err = replaceFile(a.notePath(), append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("note what is untracked: %w", err)
	}
	a.noted = selectors
	return nil
}

// replaceFile writes a file so that a kill leaves the old one or the new one.
func replaceFile(path string, text []byte) error {
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// adoptOrphans gives the connections entries that an earlier process left untracked.
func (a *Agent) adoptOrphans() {
	if a.dryRun {
		return
	}
	n, err := adoptNoted(a.notePath(), a.actuator.adopt)
	a.trouble("adopt connections", err)
	if n > 0 {
		a.emit(policy.Event{Kind: policy.RepairEvent, Entries: n, Reason: "left by an earlier run: " + adopted(n)})
	}
}

// adopted says what adoptNoted did.
func adopted(n int) string {
	return fmt.Sprintf("%d connections that lived untracked given entries", n)
}

// adoptNoted gives the connections entries that a note says live untracked, and takes the note away.
func adoptNoted(path string, adopt func(context.Context, []policy.Selector) (int, error)) (int, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	var selectors []policy.Selector
	if err == nil {
		err = json.Unmarshal(text, &selectors)
	}
	n := 0
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), adoptPatience)
		defer cancel()
		n, err = adopt(ctx, selectors)
	}
	return n, errors.Join(err, os.Remove(path))
}
