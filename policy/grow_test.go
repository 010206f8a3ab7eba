package policy

import (
	"maps"
	"testing"
)

// A table grows to eight times its size, or to 65 536 entries where that is more, never beyond the budget, and its
// buckets in proportion, but to no more of them than entries, unless there are already; to no round number, which
// somebody else might write.
func TestGrowth(t *testing.T) {
	for _, c := range []struct{ max, buckets, room, wantMax, wantBuckets int }{
		{262_144, 262_144, 1 << 30, 8*262_144 - 1, 8*262_144 - 1},
		{262_144, 65_536, 524_288, 524_288, 131_072},
		{64, 262_144, 1 << 30, 65_535, 262_144}, // somebody shrunk it to next to nothing
		{64, 4096, 1 << 30, 65_535, 65_535},
		{1024, 1024, 15_000, 15_000, 15_000},
		{16_384, 4096, 1 << 30, 131_071, 32_767},
		{64, 4096, 64, 0, 0},
		{0, 4096, 1 << 30, 0, 0}, // no bound at all
	} {
		s := situation{works: true, Observation: Observation{Host: Host{MaxEntries: c.room,
			Admin: map[string]int{tableMax: c.max, tableBuckets: c.buckets}}}}
		p := Posture{Settings: make(map[string]int)}
		want := map[string]int{tableMax: c.wantMax, tableBuckets: c.wantBuckets}
		if c.wantMax == 0 {
			want = p.Settings
		}
		g := &grow{}
		if g.skipped(s) == "" {
			g.want(s, &p)
		}
		if !maps.Equal(p.Settings, want) {
			t.Errorf("%d entries and %d buckets, room for %d: wants %v, want %v", c.max, c.buckets, c.room, p.Settings, want)
		}
	}
}
