package conntrack

import (
	"context"
	"fmt"
	"net/netip"

	"golang.org/x/time/rate"
)

// Retiming says how long existing entries may still live.
type Retiming struct {
	// seconds by sysctl name, such as nf_conntrack_tcp_timeout_established; states without a name stay as they are
	Timeouts map[string]int
	// likewise, as they were in force until now: how long entries have been silent is told from them; may be empty
	Before map[string]int
	Spare  []netip.Prefix // the allowlist: entries with such an original source stay as they are
	Rate   *rate.Limiter  // changes per second, nil for no bound; Retime waits for it, in batches up to its burst
}

// Retime gives every entry that has more time left than the timeout of its protocol and state that
// timeout, and returns how many it changed. It only ever shortens; entries with a fixed timeout
// (IPS_FIXED_TIMEOUT) and those that hardware forwards are left alone. The next packet of an entry
// sets its time by the kernel's own settings again, so set those first.
//
// An entry that has been silent keeps the memory of it: the time that it was silent is taken off its new
// timeout, up to half of that. So what is idle can still be told from what has just spoken.
//
// When ctx ends or the kernel fails, it returns how many were changed until then beside the error.
func (t *Table) Retime(ctx context.Context, r Retiming) (changed int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(r.Timeouts) == 0 {
		return 0, nil
	}
	x := newRetimer(r)
	changed, err = t.change(ctx, msgNew, r.Rate, func(queue *changes) error {
		_, err := t.walk(ctx, part{}, 0, func(e *entry) bool { return x.visit(queue, e) })
		return err
	})
	if err != nil {
		err = fmt.Errorf("retime: %w", err)
	}
	return changed, err
}

// retimer is one retiming under way.
type retimer struct {
	limits, before *limits
	spare          prefixSet
	timeout        []byte // the attribute, written anew for each entry
}

func newRetimer(r Retiming) *retimer {
	return &retimer{limits: newLimits(r.Timeouts), before: newLimits(r.Before), spare: newPrefixSet(r.Spare),
		timeout: make([]byte, 0, 2*attrLen)}
}

// visit queues an entry's new timeout if it is to have one, and says whether there is any use in more.
func (x *retimer) visit(queue *changes, e *entry) (more bool) {
	limit := x.limits.of(e)
	if e.timeout == noTimeout || e.timeout <= limit || e.status&statusFixedTimeout != 0 || x.spare.contains(e.orig.src) {
		return true
	}
	if was := x.before.of(e); was != noTimeout && e.timeout < was {
		limit -= min(was-e.timeout, limit/2)
	}
	if limit >= e.timeout {
		return true
	}
	x.timeout = timeoutAttr(x.timeout, limit)
	return queue.addAs(msgNew, e.family, e.bytes(e.tupleSpan), e.bytes(e.zoneSpan), x.timeout)
}
