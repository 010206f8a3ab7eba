package agent

import (
	"context"
	"errors"

	"ctguard/agent/conntrack"
	"ctguard/agent/control"
	"ctguard/agent/state"
	"ctguard/agent/survey/capabilities"
	"ctguard/nft"
)

// errOtherKernel says that what an earlier process found is no longer true.
var errOtherKernel = errors.New("this kernel can do other things than an earlier process found: " +
	"what it can do counts from the next start on (systemctl restart ctguard)")

// findOut returns what this kernel can do, and leaves to be tried out what a table that is about to fill must not wait
// for: the self-test, what has no part in rules, and once more what an earlier process found, which counts at once.
func (a *Agent) findOut(o Options) (capabilities.Found, error) {
	l, proc := a.loop, o.Root+"/proc"
	var kept *state.Dir // a dry run has none
	if !o.DryRun {
		kept = state.At(l.config.StateDir)
	}
	var rules nft.Capabilities
	known, err := kept.Kernel(proc, &rules)
	l.trouble("kernel", err)
	if !known {
		if rules, err = nft.Probe(); err != nil {
			return capabilities.Found{}, err
		}
	}
	found, err := capabilities.Of(rules)
	if err != nil {
		return found, err
	}
	a.tryOut = func() func() func(*loop) {
		verify := func() error { return kept.KeepKernel(proc, rules) }
		if known {
			verify = again(rules, func(now nft.Capabilities) error { return kept.KeepKernel(proc, now) })
		}
		conntrack.StartProbe()
		return outcome(verify, selfTest(o.Root, found.Rules))
	}
	l.missing, l.untried = found.Missing, true
	return found, nil
}

// again begins to find out what an earlier process has, and returns what waits for it and keeps what is different.
func again(earlier nft.Capabilities, keep func(nft.Capabilities) error) (verify func() error) {
	probe := nft.StartProbe()
	return func() error {
		now, err := probe()
		if err != nil || now == earlier {
			return err
		}
		return errors.Join(errOtherKernel, keep(now))
	}
}

// outcome returns what waits for what is tried out, and hands what came of it to the loop.
func outcome(verify, tested func() error) func() func(*loop) {
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

// serve tries out what was left to be, once the loop guards the table: the namespaces for it cost more than all the
// rest of a start, and they keep the survey waiting. Then it gives up the privileges that this takes, and only then
// answers anybody.
func (a *Agent) serve(ctx context.Context, ch channels, server *control.Server) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-ch.guarding:
	}
	if a.tryOut != nil {
		wait := a.tryOut()
		if err := dropPrivileges(); err != nil {
			return err
		}
		go func() { ch.tried <- wait() }() // one that hangs keeps nobody from taking everything back
	}
	return server.Serve(ctx)
}
