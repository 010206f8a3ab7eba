package conntrack

import (
	"sync/atomic"
	"testing"
	"time"

	"ctguard/policy"
)

// One pass takes a source's excess, lets what is finished run out and shortens the rest; nothing is counted twice.
func TestEvictBesides(t *testing.T) {
	for _, room := range []int{heapLimit, 1} { // with the source's entries remembered, and counted in a pass before
		table := openTable(t)
		fill(t, tcp("192.0.2.1", 5, tcpEstablished, busy, 9000)...)
		fill(t, tcp("192.0.2.1", 9, tcpTimeWait, busy, 100)[5:]...)
		fill(t, tcp("192.0.2.2", 3, tcpEstablished, busy, 9000)...)
		fill(t, tcp("192.0.2.3", 2, tcpTimeWait, busy, 100)...)
		defer func(was int) { heapLimit = was }(heapLimit)
		heapLimit = room
		var progress atomic.Uint64
		v := Eviction{Caps: []policy.Cap{{Prefix: prefix("192.0.2.1/32"), Keep: 2}}, Progress: &progress, Besides: &Besides{
			Retire: &Retirement{Timeouts: map[string]int{"nf_conntrack_tcp_timeout_time_wait": 120}, Silent: time.Second},
			Retime: &Retiming{Timeouts: map[string]int{"nf_conntrack_tcp_timeout_established": 5000}},
		}}
		deleted, err := table.Evict(t.Context(), v)
		if err != nil || deleted != 3 || v.Besides.Retired != 6 || progress.Load() != 9 {
			t.Errorf("room %d: deleted %d, retired %d, progress %d (%v), want 3, 6 and 9", room, deleted, v.Besides.Retired,
				progress.Load(), err)
		}
		long := 0
		for _, e := range dump(t, table) {
			if e.state == tcpEstablished {
				long++
			}
			if limit := map[uint8]uint32{tcpEstablished: 5000, tcpTimeWait: lastSecond}[e.state]; e.timeout > limit {
				t.Errorf("room %d: state %d has %d s left", room, e.state, e.timeout)
			}
		}
		if long != 5 || v.Besides.Retimed < long {
			t.Errorf("room %d: %d conversations left, %d entries shortened", room, long, v.Besides.Retimed)
		}
	}
}
