package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"ctguard/policy"
)

// comparePrefixes lets cmp compare addresses.
var comparePrefixes = cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{})

// referenceConfig is the file that explains every key.
func referenceConfig(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/examples/ctguard.toml")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// parse reads a configuration that must be fine.
func parse(t *testing.T, text string) Config {
	t.Helper()
	c, err := Parse("test.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The reference says what the defaults are: every value in it is one.
func TestReferenceHasTheDefaults(t *testing.T) {
	if diff := cmp.Diff(parse(t, ""), parse(t, referenceConfig(t)), comparePrefixes); diff != "" {
		t.Errorf("the reference differs from the defaults (-default +reference):\n%s", diff)
	}
}

// The reference names every key, each with a comment above it or above its table.
func TestReferenceNamesEveryKey(t *testing.T) {
	text := referenceConfig(t)
	doc, err := read("reference", []byte(text), reflect.TypeFor[rawConfig]())
	if err != nil {
		t.Fatal(err)
	}
	places := doc.lines
	for _, key := range knownKeys {
		var names []string
		if prefix, suffix, ok := strings.Cut(key, "*"); ok {
			for _, step := range policy.StepNames() {
				names = append(names, prefix+string(step)+suffix)
			}
		} else {
			names = append(names, key)
		}
		for _, name := range names {
			if places[name] == 0 {
				t.Errorf("%s is not in the reference", name)
			}
		}
	}
	for name := range policy.Defaults(policy.Server).Floors {
		if places["tighten.floors."+name] == 0 {
			t.Errorf("the floor of %s is not in the reference", name)
		}
	}
}

// The keys are taken from the type; a few that must be among them, and none that is none.
func TestKnownKeys(t *testing.T) {
	for _, key := range []string{"profile", "table.capacity", "steps.*.leave", "tighten.floors", "evict.weights",
		"evict.reject"} {
		if !slices.Contains(knownKeys, key) {
			t.Errorf("%s is missing in %v", key, knownKeys)
		}
	}
	for _, key := range knownKeys {
		if key == "" || strings.HasSuffix(key, ".") {
			t.Errorf("%q is no key: a field of the raw types has no toml tag", key)
		}
	}
}

// What is wrong, where, and what would be right.
func TestBadConfig(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"unknown key", "lokahead = \"5s\"", []string{
			`bad.toml:1: lokahead: unknown key; did you mean lookahead?`}},
		{"unknown key in a table", "\n[evict]\nfloor = 5\nmax_limit = 7", []string{
			`bad.toml:4: evict.max_limit: unknown key; did you mean evict.max_limited?`}},
		{"unknown key of a step", "[steps.evict]\nentr = 95", []string{
			`bad.toml:2: steps.evict.entr: unknown key; did you mean steps.evict.enter?`}},
		{"unknown key like no other", "[evict]\ncolour = \"red\"", []string{
			`bad.toml:2: evict.colour: unknown key; docs/examples/ctguard.toml lists them all`}},
		{"unknown table", "[tabel]\ncapacity = 5", []string{
			`bad.toml:1: tabel: unknown key; did you mean table?`}},
		{"unknown step", "[steps.reboot]\nenter = 95", []string{
			`bad.toml:1: steps.reboot: unknown step; the steps are grow, `}},
		{"unknown profile", `profile = "laptop"`, []string{
			`bad.toml:1: profile: "laptop" is none of "auto", "server" and "nat-gateway"`}},
		{"unknown timeout", "[tighten.floors]\nudp = \"5s\"", []string{
			`bad.toml:2: tighten.floors.udp: is no timeout that tighten knows; it knows nf_conntrack_dccp`}},
		{"duration without a unit", "[tick]\n\ncalm = \"250\"", []string{
			`bad.toml:3: tick.calm: "250" is no duration: write a number with a unit, such as "250ms", "10s" or "1h30m"`}},
		{"duration out of range", `lookahead = "6m"`, []string{
			`bad.toml:1: lookahead: 6m0s is not between 0s and 5m`}},
		{"tick out of order", "[tick]\ncalm = \"20ms\"", []string{
			`bad.toml:2: tick.calm: 20ms is not between tick.pressed (50ms) and 10s`}},
		{"leave above enter", "[steps.evict]\nleave = 95", []string{
			`bad.toml:2: steps.evict.leave: 95 is not above 0 and below its enter mark (90)`}},
		{"leave at enter", "[steps.evict]\nenter = 90\nleave = 90", []string{
			`bad.toml:3: steps.evict.leave: 90 is not above 0 and below its enter mark (90)`}},
		{"enter above 100", "[steps.evict]\nenter = 101", []string{
			`bad.toml:2: steps.evict.enter: 101 is not a percentage above 0 and up to 100`}},
		{"steps out of order", "[steps.notrack]\nenter = 70\n[steps.tighten]\nenter = 69\nleave = 50", []string{
			`bad.toml:4: steps.tighten.enter: 69 is below that of synproxy (70), the step before it`}},
		{"settle too short", "[steps.tighten]\nsettle = \"1ms\"", []string{
			`bad.toml:2: steps.tighten.settle: 1ms is not between 100ms and 1h`}},
		{"target above leave", "[evict]\ntarget = 75", []string{
			`bad.toml:2: evict.target: 75 is not below steps.evict.leave (75): evict could never be taken back`}},
		{"bad prefix", `allow = ["10.0.0.0/33"]`, []string{
			`bad.toml:1: allow: "10.0.0.0/33" is no address or prefix: write "198.51.100.7" or "2001:db8::/32"`}},
		{"host bits", `allow = ["10.0.0.1/8"]`, []string{
			`bad.toml:1: allow: "10.0.0.1/8" has bits beyond its length: write "10.0.0.0/8"`}},
		{"zone", `allow = ["fe80::1%eth0"]`, []string{
			`bad.toml:1: allow: "fe80::1%eth0" is no address or prefix: write`}},
		{"bad weight", "[evict.weights]\n\"10.0.0.0/8\" = 0", []string{
			`bad.toml:2: evict.weights."10.0.0.0/8": 0 is not a number above 0`}},
		{"no number", "[steps.evict]\nenter = nan", []string{
			`bad.toml:2: steps.evict.enter: NaN is not a percentage above 0 and up to 100`}},
		{"endless weight", "[evict.weights]\n\"10.0.0.0/8\" = inf", []string{
			`bad.toml:2: evict.weights."10.0.0.0/8": +Inf is not a number above 0`}},
		{"bad port", "[management]\nports = [22, 65536]", []string{
			`bad.toml:2: management.ports: 65536 is no port`}},
		{"bad selector", "[notrack]\nservices = [\"auto\", \"sctp\"]", []string{
			`bad.toml:2: notrack.services: selector "sctp" is none of "tcp", "tcp/PORT", "tcp/FIRST-LAST", ` +
				`the same of udp, "echo", each of them also followed by ` +
				`"with REMOTE-PREFIX", "at OWN-PREFIX" or "on INTERFACE"; "multicast"; "all"; or "auto"`}},
		{"bad exception", "[notrack]\nexcept = [\"auto\"]", []string{
			`bad.toml:2: notrack.except: selector "auto" is none of`}},
		{"bad prefix length", "[sources]\nipv4_prefix = 33\nipv6_prefix = 0", []string{
			`bad.toml:2: sources.ipv4_prefix: 33 is not between 1 and 32`,
			`bad.toml:3: sources.ipv6_prefix: 0 is not between 1 and 128`}},
		{"negative capacity", "[table]\ncapacity = -1", []string{
			`bad.toml:2: table.capacity: -1 is below 0`}},
		{"namespaces without a name", "namespaces = [\"host\", \"\", \"a/b\"]", []string{
			`bad.toml:1: namespaces: "" is no name of a network namespace`,
			`bad.toml:1: namespaces: "a/b" is neither a name nor an absolute path: write "blue" or "/proc/PID/ns/net"`}},
		{"namespace twice", "namespaces = [\"blue\", \"/run/netns/blue\"]", []string{
			`bad.toml:1: namespaces: "/run/netns/blue" is there twice`}},
		{"capacity of another namespace", "namespaces = [\"host\", \"blue\"]\n[capacities]\nblue = 1000\nred = 1000",
			[]string{
				`bad.toml:4: capacities.red: is not in namespaces, which has host, blue`}},
		{"capacity without namespaces", "[capacities]\nblue = 1000", []string{
			`bad.toml:2: capacities.blue: is not in namespaces, which is empty`}},
		{"negative capacity of a namespace", "namespaces = [\"/proc/7/ns/net\"]\n[capacities]\n\"/proc/7/ns/net\" = -5",
			[]string{
				`bad.toml:3: capacities./proc/7/ns/net: -5 is below 0`}},
		{"capacities is no table", "capacities = [5]", []string{
			`bad.toml:1: capacities: is no table: write [capacities] and its keys below`}},
		{"metrics that nobody serves", "namespaces = [\"blue\"]\n[metrics]\nlisten = \"127.0.0.1:9479\"", []string{
			`bad.toml:3: metrics.listen: only the agent of "host" serves it`}},
		{"floor below a second", "[tighten.floors]\nnf_conntrack_udp_timeout = \"10ms\"", []string{
			`bad.toml:2: tighten.floors.nf_conntrack_udp_timeout: 10ms is below 1s`}},
		{"wrong type", "[table]\ncapacity = \"many\"", []string{
			`bad.toml:2: table.capacity: is a string: write a whole number`}},
		{"wrong type of a list", "allow = \"10.0.0.0/8\"", []string{
			`bad.toml:1: allow: is a string: write a list`}},
		{"wrong type of a table", "[steps]\nevict = 5", []string{
			`bad.toml:2: steps.evict: is a number: write a table`}},
		{"a table of the operator's keys", "[evict]\nweights = [1]", []string{
			`bad.toml:2: evict.weights: is no table: write [evict.weights] and its keys below`}},
		{"fraction of a whole number", "[evict]\nfloor = 1.5", []string{
			`bad.toml:2: evict.floor: is a number with a fraction: write a whole number`}},
		{"syntax", "profile = \"server\"\nsocket = /run/ctguard.sock", []string{
			`bad.toml:2: socket: expected value but found '/' instead`}},
		{"twice", "profile = \"server\"\nprofile = \"server\"", []string{
			`bad.toml:2: profile: Key 'profile' has already been defined`}},
		{"several, in the order of the lines", "allow = [\"x\"]\nlookahead = \"1h\"\n" +
			"[evict]\nfloor = 0\ncolour = 1\n[steps.fly]\n[table]\ncapacity = -5", []string{
			`bad.toml:1: allow: "x" is no address or prefix`,
			`bad.toml:2: lookahead: 1h0m0s is not between 0s and 5m`,
			`bad.toml:4: evict.floor: 0 is below 1`,
			`bad.toml:5: evict.colour: unknown key; docs/examples/ctguard.toml lists them all`,
			`bad.toml:6: steps.fly: unknown step`,
			`bad.toml:8: table.capacity: -5 is below 0`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("bad.toml", []byte(c.text))
			if err == nil {
				t.Fatal("no error")
			}
			got := strings.Split(err.Error(), "\n")
			if len(got) != len(c.want) {
				t.Fatalf("%d faults, want %d:\n%v", len(got), len(c.want), err)
			}
			for i, want := range c.want {
				if !strings.HasPrefix(got[i], want) {
					t.Errorf("fault %d:\n got %s\nwant %s", i+1, got[i], want)
				}
			}
		})
	}
}

// A step that is off is not on the ladder; the others keep their marks.
func TestStepOff(t *testing.T) {
	c := parse(t, "[steps.notrack]\nenabled = false\n[steps.evict]\nenter = 95\nsettle = \"1s\"")
	var got []policy.StepName
	for _, s := range c.Policy.Steps {
		got = append(got, s.Name)
	}
	want := slices.DeleteFunc(policy.StepNames(), func(name policy.StepName) bool { return name == policy.Notrack })
	if !slices.Equal(got, want) {
		t.Errorf("ladder %v, want %v", got, want)
	}
	if s, _ := c.Policy.Step(policy.Evict); s.Enter != 95 || s.Leave != 75 || s.Settle.String() != "1s" {
		t.Errorf("evict is %+v", s)
	}
}

// Who moves one step's mark need not name the others: those left to their defaults make way.
func TestMarksMakeWay(t *testing.T) {
	c := parse(t, "[steps.tighten]\nenter = 62\nleave = 50\n[steps.evict]\nenter = 97")
	marks := make(map[policy.StepName]float64)
	for _, s := range c.Policy.Steps {
		marks[s.Name] = s.Enter
	}
	want := make(map[policy.StepName]float64)
	least, most := 0.0, 62.0
	for _, s := range policy.Defaults(policy.Server).Steps {
		switch s.Name {
		case policy.Tighten:
			least, most = 62, 97
			want[s.Name] = 62
		case policy.Evict:
			least, most = 97, 100
			want[s.Name] = 97
		default:
			want[s.Name] = min(max(s.Enter, least), most)
		}
	}
	if diff := cmp.Diff(want, marks); diff != "" {
		t.Error(diff)
	}
}

// One configuration leaves the defaults of the next alone.
func TestConfigsShareNothing(t *testing.T) {
	before := parse(t, "")
	parse(t, "[tighten.floors]\nnf_conntrack_udp_timeout = \"7s\"\n"+
		"[steps.notrack]\nenabled = false\n[steps.evict]\nenter = 99")
	if diff := cmp.Diff(before, parse(t, ""), comparePrefixes); diff != "" {
		t.Errorf("the defaults moved (-before +after):\n%s", diff)
	}
}

// The profile changes defaults only: what the file says counts.
func TestProfile(t *testing.T) {
	if c := parse(t, `profile = "nat-gateway"`); !c.Policy.SpareAssured {
		t.Error("a gateway would evict assured entries")
	}
	if c := parse(t, "profile = \"nat-gateway\"\n[evict]\nspare_assured = false"); c.Policy.SpareAssured {
		t.Error("what the file says was overruled")
	}
}

// Only the configuration that nobody asked for may be absent.
func TestLoad(t *testing.T) {
	absent := filepath.Join(t.TempDir(), "ctguard.toml")
	if _, err := Load(absent, true); err != nil {
		t.Errorf("absent and optional: %v", err)
	}
	want := absent + ": cannot be read: no such file or directory"
	if _, err := Load(absent, false); err == nil || err.Error() != want {
		t.Errorf("absent and asked for: %v, want %s", err, want)
	}
	directory := t.TempDir()
	if _, err := Load(directory, true); err == nil || !strings.HasPrefix(err.Error(), directory+": cannot be read: ") {
		t.Errorf("unreadable: %v", err)
	}
}

func TestParsePrefix(t *testing.T) {
	for text, want := range map[string]string{
		"198.51.100.7":        "198.51.100.7/32",
		"2001:db8::7":         "2001:db8::7/128",
		"::ffff:198.51.100.7": "198.51.100.7/32",
		"198.51.100.0/24":     "198.51.100.0/24",
		"0.0.0.0/0":           "0.0.0.0/0",
	} {
		if got, err := ParsePrefix(text); err != nil || got.String() != want {
			t.Errorf("%s is %s (%v), want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "localhost", "198.51.100.7/24", "198.51.100.0/", "::ffff:198.51.100.0/120",
		"fe80::1%eth0"} {
		if got, err := ParsePrefix(text); err == nil {
			t.Errorf("%q was taken for %s", text, got)
		}
	}
}

// Whatever text is given, it is refused or read, with faults in the order of lines.
func FuzzConfig(f *testing.F) {
	for _, seed := range []string{"", "allow = [\"10.0.0.1/8\"]\n[steps.evict]\nleave = 95", "[a.b]\n'c.d' = 1",
		"x = [\n\"y = 1\",\n]"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse("f.toml", []byte(text))
		if err == nil && len(c.Policy.Validate()) > 0 {
			t.Errorf("a configuration was taken with faults: %v", c.Policy.Validate())
		}
	})
}
