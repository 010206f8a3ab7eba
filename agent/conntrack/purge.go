package conntrack

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"ctguard/policy"
)

// statusLasting is what a purge spares: conversations that lasted, and everything with NAT.
const statusLasting = statusAssured | statusSrcNAT | statusDstNAT

// Purge deletes the entries of a class that are neither assured nor translated, nor from a source in spare, and where
// that is asked for only those to one of the local prefixes: what a flood from spoofed addresses left at a local
// service. An entry is of the class when its original tuple has the protocol and the destination port; port 0 means
// any, and protocols without ports. Only the bits IPS_ASSURED, IPS_SRC_NAT and IPS_DST_NAT of the status count
// (include/uapi/linux/netfilter/nf_conntrack_common.h).
//
// With p.Unfinished it is only TCP handshakes, and of them those that were under way in the pass before as well, which
// was p.Unfinished ago or longer; the first pass deletes nothing.
//
// It is one pass over the table with deletions beside it, as many per second as r allows, nil for no bound.
// The kernel leaves out of it what lasts. One filtered flush would do for a third of the CPU, but can
// spare nobody. When ctx ends or the kernel fails, Purge returns what was deleted until then beside the
// error.
func (t *Table) Purge(
	ctx context.Context, p policy.Purge, local, spare []netip.Prefix, r *rate.Limiter,
) (deleted int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	spared, own := newPrefixSet(spare), newPrefixSet(local)
	if p.Unfinished > 0 && !t.underWay.begin(time.Now(), p.Unfinished, t.room()) {
		return 0, nil
	}
	deleted, err = t.change(ctx, msgDelete, r, func(queue *changes) error {
		_, err := t.walk(ctx, part{lacks: statusLasting}, 0, func(e *entry) bool {
			return !e.purgeable(p.Class) || p.Local && !own.contains(e.orig.dst) || spared.contains(e.orig.src) ||
				p.Unfinished > 0 && !t.underWay.again(e) || queue.delete(e)
		})
		return err
	})
	if err != nil {
		err = fmt.Errorf("purge %v: %w", p.Class, err)
	}
	return deleted, err
}

// purgeable says whether e is of a class and has no bit of statusLasting.
func (e *entry) purgeable(class policy.FlowClass) bool {
	return e.orig.proto == class.Protocol && (class.Port == 0 || e.orig.dstPort == class.Port) &&
		e.status&statusLasting == 0
}
