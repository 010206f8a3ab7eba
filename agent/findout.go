package agent

import (
	"errors"

	"ctguard/agent/conntrack"
	"ctguard/agent/state"
	"ctguard/agent/survey/capabilities"
	"ctguard/nft"
)

// errOtherKernel says that what an earlier process found is no longer true.
var errOtherKernel = errors.New("this kernel can do other things than an earlier process found: " +
	"what it can do counts from the next start on (systemctl restart ctguard)")

// findOut returns what this kernel can do, and begins to try out what a table that is about to fill must not wait for:
// the self-test, what has no part in rules, and once more what an earlier process found, which counts at once.
func (a *Agent) findOut(o Options) (capabilities.Found, error) {
	l, proc := a.loop, o.Root+"/proc"
	var kept *state.Dir // a dry run has none
	if !o.DryRun {
		kept = state.At(l.config.StateDir)
	}
	var rules nft.Capabilities
	known, err := kept.Kernel(proc, &rules)
	l.trouble("kernel", err)
	probe := nft.StartProbe()
	verify := func() error { return kept.KeepKernel(proc, rules) }
	if known {
		earlier := rules
		verify = func() error {
			now, err := probe()
			if err != nil || now == earlier {
				return err
			}
			return errors.Join(errOtherKernel, kept.KeepKernel(proc, now))
		}
	} else if rules, err = probe(); err != nil {
		return capabilities.Found{}, err
	}
	found, err := capabilities.Of(rules)
	if err != nil {
		return found, err
	}
	conntrack.StartProbe()
	a.tryOut = tryOut(verify, selfTest(o.Root, found.Rules))
	l.missing, l.untried = found.Missing, true
	return found, nil
}

// tryOut returns what waits for what is tried out, and hands what came of it to the loop.
func tryOut(verify, tested func() error) func() func(*loop) {
	return func() func(*loop) {
		slower, slow := capabilities.Slower()
		other, failed := verify(), tested()
		return func(l *loop) {
			l.slower, l.untried = slower, false
			l.trouble("kernel", errors.Join(slow, other))
			l.trouble("self-test", failed)
		}
	}
}
