package conntrack

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"ctguard/policy"
)

// statusLasting is what a purge spares: conversations that lasted, and everything with NAT.
const statusLasting = statusAssured | statusSrcNAT | statusDstNAT

// Purge deletes the entries of a class that are neither assured nor translated: what a flood from
// spoofed addresses left at a local service. An entry is of the class when its original tuple has
// the protocol and the destination port; port 0 means any, and protocols without ports. Only the
// bits IPS_ASSURED, IPS_SRC_NAT and IPS_DST_NAT of the status count
// (include/uapi/linux/netfilter/nf_conntrack_common.h).
//
// On a kernel that can, it is one request for each family, which waits for no walk of the table and
// cannot be slowed: r does not apply. The number is then the fall of the table's count, never below
// 0: too small by the entries that came meanwhile, too large by others that went. Elsewhere, and for
// ports of other protocols than TCP and UDP, it is one pass over the table with deletions beside it,
// as many per second as r allows, nil for no bound, and the number is exact.
//
// When ctx ends or the kernel fails, Purge returns what was deleted until then beside the error.
func (t *Table) Purge(ctx context.Context, class policy.FlowClass, r *rate.Limiter) (deleted int, err error) {
	var can Families
	if flushable(class) {
		can = t.capabilities().FilteredPurge
	}
	if can.IPv4 || can.IPv6 {
		deleted, err = t.purgeByFlush(ctx, class, can)
	}
	if err == nil && can != (Families{IPv4: true, IPv6: true}) {
		var walked int
		walked, err = t.purgeByWalk(ctx, class, can.rest(), r)
		deleted += walked
	}
	if err != nil {
		err = fmt.Errorf("purge %v: %w", class, err)
	}
	return deleted, err
}

// rest is the part of the table that f does not cover; f covers one family at most.
func (f Families) rest() part {
	switch {
	case f.IPv4:
		return part{family: unix.AF_INET6}
	case f.IPv6:
		return part{family: unix.AF_INET}
	}
	return part{}
}

// purgeByFlush purges the families that can by a filtered flush each.
func (t *Table) purgeByFlush(ctx context.Context, class policy.FlowClass, can Families) (deleted int, err error) {
	before, err := t.Count()
	if err != nil {
		return 0, err
	}
	err = ctx.Err()
	if err == nil && can.IPv4 {
		err = t.flushClass(class, unix.AF_INET)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err == nil && can.IPv6 {
		err = t.flushClass(class, unix.AF_INET6)
	}
	after, countErr := t.Count()
	if countErr != nil {
		return 0, countErr
	}
	return max(before-after, 0), err
}

// purgeByWalk purges a part of the table with deletions beside its dump.
func (t *Table) purgeByWalk(ctx context.Context, class policy.FlowClass, p part, r *rate.Limiter) (deleted int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	queue, err := t.newChanges(ctx, msgDelete, r)
	if err != nil {
		return 0, err
	}
	queue.done = func(int32) { deleted++ }
	queue.failed = func(int32, unix.Errno) {} // gone by itself, or EBUSY: flows that hardware forwards, on older kernels
	queue.skipped = func(int32) {}
	_, err = t.walk(ctx, p, deadline(0), func(e *entry) bool {
		if e.purgeable(class) {
			queue.add(0, e.family, e.bytes(e.tupleSpan), e.bytes(e.zoneSpan), e.bytes(e.idSpan))
		}
		return queue.err == nil
	})
	if closeErr := queue.close(); closeErr != nil {
		err = closeErr
	}
	return deleted, err
}

// purgeable says for a walk what the kernel's filter says for a flush; see appendClassFilter.
func (e *entry) purgeable(class policy.FlowClass) bool {
	return e.orig.proto == class.Protocol && (class.Port == 0 || e.orig.dstPort == class.Port) && e.status&statusLasting == 0
}
