package record

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"ctguard/agent/state"
	"ctguard/policy"
)

// top is the level at which every step is engaged.
var top = len(policy.StepNames())

// course is a flood that comes and goes, with everything an observation can carry.
func course() []policy.Observation {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	web := policy.Selector{Protocol: policy.TCP, Port: 80}
	lane := policy.Selector{Protocol: policy.TCP, Port: 22, Remote: netip.MustParsePrefix("192.0.2.0/24")}
	var list []policy.Observation
	for i := range 400 {
		o := policy.Observation{
			Time: start.Add(time.Duration(i) * 250 * time.Millisecond), Capacity: 65536,
			Count: 30000 + min(i, 60)*600, Host: policy.Host{
				Admin: map[string]int{"nf_conntrack_tcp_loose": 1, "nf_conntrack_udp_timeout": 30},
				Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Services: []policy.Selector{web},
				Lane:    []policy.Selector{lane},
				Refused: map[policy.Selector]string{web: "NAT on this host"},
			},
		}
		if i > 80 {
			o.Count = 20000
		}
		if i%4 == 0 {
			h := policy.Holding{Prefix: netip.MustParsePrefix("198.51.100.7/32"), Entries: o.Count * 3 / 4}
			h.Classes[policy.Assured] = h.Entries
			o.Census = &policy.Census{Time: o.Time, Seen: o.Count, Total: o.Count, Whole: true, Sources: []policy.Holding{h},
				Rest: policy.Holding{Entries: o.Count - h.Entries}, Protocols: map[uint8]int{6: o.Count}}
		}
		list = append(list, o)
	}
	return list
}

// recorded writes a recording of the course and returns it with the decisions taken.
func recorded(t *testing.T, c policy.Config) (string, []policy.Decision) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "recording")
	r, err := New(path, "test", c, policy.OrdinaryDay{})
	if err != nil {
		t.Fatal(err)
	}
	m := policy.New(c)
	var decisions []policy.Decision
	for i, o := range course() {
		if i == 200 {
			m.SetOverride(&policy.Override{Kind: policy.Pin, Level: 2, Until: o.Time.Add(5 * time.Second), Reason: "test"})
		}
		words := state.WordsOf(m)
		d := m.Tick(o)
		decisions = append(decisions, d)
		if err := r.Record(o, words, d.Posture.Level); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return path, decisions
}

// replayed returns the decisions of a replay and how many differ from what was recorded.
func replayed(t *testing.T, text []byte, c *policy.Config) (decisions []policy.Decision, differ int) {
	t.Helper()
	err := Replay(bytes.NewReader(text), c, func(tick Tick) {
		decisions = append(decisions, tick.Decision)
		if tick.Decision.Posture.Level != tick.Recorded {
			differ++
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return decisions, differ
}

// A replay with the recording's own configuration decides what was decided then, to the last
// number: nothing that decisions depend on is outside the recording.
func TestReplayDecidesTheSame(t *testing.T) {
	path, want := recorded(t, policy.Defaults(policy.Server))
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, differ := replayed(t, text, nil)
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{}),
		cmpopts.EquateEmpty()); diff != "" || differ > 0 {
		t.Errorf("%d levels differ (-then +now):\n%s", differ, diff)
	}
	if !slices.ContainsFunc(got, func(d policy.Decision) bool {
		return d.Posture.Level == top &&
			len(d.Posture.Limits) > 0
	}) {
		t.Error("the course shows too little: nobody was ever limited")
	}
}

// Another configuration decides otherwise, on the same observations.
func TestReplayWithAnotherConfig(t *testing.T) {
	path, _ := recorded(t, policy.Defaults(policy.Server))
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	other := policy.Defaults(policy.Server)
	other.Steps = other.Steps[:2]
	decisions, differ := replayed(t, text, &other)
	if differ == 0 {
		t.Error("a ladder of two steps did what one of four did")
	}
	for _, d := range decisions {
		if d.Posture.Level > 2 {
			t.Fatalf("level %d on a ladder of two steps", d.Posture.Level)
		}
	}
}

// A recording that broke off is replayed as far as it goes; a file that is none is refused; an
// existing file is not written over; a full one goes no further.
func TestRecordingEdges(t *testing.T) {
	path, all := recorded(t, policy.Defaults(policy.Server))
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if part, _ := replayed(t, text[:len(text)*2/3], nil); len(part) == 0 || len(part) >= len(all) {
		t.Errorf("%d of %d ticks of a broken recording", len(part), len(all))
	}
	if err := Replay(bytes.NewReader([]byte("no recording")), nil, func(Tick) {}); err == nil {
		t.Error("a file that is no recording was replayed")
	}
	if _, err := New(path, "test", policy.Config{}, policy.OrdinaryDay{}); err == nil {
		t.Error("an existing file was written over")
	}
	r := &Recorder{full: true}
	if err := r.Record(policy.Observation{}, state.Words{}, 0); !errors.Is(err, ErrFull) {
		t.Errorf("a full recording: %v", err)
	}
}

// A recording whose configuration nobody can have run is refused.
func TestReplayOfDamagedConfig(t *testing.T) {
	for _, damage := range []func(*policy.Config){
		func(c *policy.Config) { c.MaxLimited = -1 },
		func(c *policy.Config) { c.Steps[0].Name = "no step" },
	} {
		c := policy.Defaults(policy.Server)
		damage(&c)
		path := filepath.Join(t.TempDir(), "recording")
		r, err := New(path, "test", c, policy.OrdinaryDay{})
		if err := errors.Join(err, r.Close()); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := Replay(bytes.NewReader(text), nil, func(Tick) {}); err == nil {
			t.Errorf("%+v was replayed", c)
		}
	}
}

// A recording of a newer format is refused, with the version that can replay it; one without a format is understood.
func TestFormats(t *testing.T) {
	for version, want := range map[int]string{
		0: "", format: "", format + 1: "format 2, and this ctguard knows formats up to 1: replay it with ctguard test",
	} {
		var text bytes.Buffer
		zip := gzip.NewWriter(&text)
		first := head{version, "test", policy.Defaults(policy.Server), policy.OrdinaryDay{}}
		if err := errors.Join(json.NewEncoder(zip).Encode(first), zip.Close()); err != nil {
			t.Fatal(err)
		}
		err := Replay(&text, nil, func(Tick) {})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("format %d: %v, want %q", version, err, want)
		}
	}
}

// A recording of format 0, with its names, is decided on as it was made.
func TestFormat0(t *testing.T) {
	var text, line bytes.Buffer
	first := head{0, "0.1.0", policy.Defaults(policy.Server), policy.OrdinaryDay{}}
	one := frame{Observation: policy.Observation{Time: time.Unix(1, 0), Count: 1, Capacity: 1000}}
	lines := json.NewEncoder(&line)
	if err := errors.Join(lines.Encode(first), lines.Encode(one)); err != nil {
		t.Fatal(err)
	}
	zip := gzip.NewWriter(&text)
	old := strings.ReplaceAll(line.String(), `"Settle":`, `"Hold":`)
	if _, err := zip.Write([]byte(old)); err != nil || zip.Close() != nil || !strings.Contains(old, `"Hold":`) {
		t.Fatal(err, old)
	}
	ticks := 0
	if err := Replay(&text, nil, func(Tick) { ticks++ }); err != nil || ticks != 1 {
		t.Errorf("%d ticks, %v", ticks, err)
	}
}
