package conntrack

import (
	"context"
	"fmt"
	"net/netip"

	"golang.org/x/time/rate"
)

// Loosen has the entries of TCP connections to forwarded services, by where clients send, check no windows any more.
// While such a service lives untracked its windows move on unseen; were it tracked again at once, as after a kill -9,
// its packets would be INVALID, not be translated, and be answered by this host with a reset. It returns how many
// entries it changed.
func (t *Table) Loosen(ctx context.Context, services []netip.AddrPort, r *rate.Limiter) (changed int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	outside := make(map[netip.AddrPort]bool)
	for _, s := range services {
		outside[s] = true
	}
	b := make([]byte, 0, 128)
	changed, err = t.change(ctx, msgNew, r, func(queue *changes) error {
		_, err := t.walk(ctx, part{}, 0, func(e *entry) bool {
			if e.orig.proto != protoTCP || !outside[netip.AddrPortFrom(e.orig.dst.netip(), e.orig.dstPort)] {
				return true
			}
			b = appendWindows(b[:0], tcpBeLiberal)
			return queue.add(e.family, e.bytes(e.tupleSpan), e.bytes(e.zoneSpan), b)
		})
		return err
	})
	if err != nil {
		err = fmt.Errorf("loosen windows: %w", err)
	}
	return changed, err
}
