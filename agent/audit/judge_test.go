package audit

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/procfs"

	"ctguard/agent/survey"
	"ctguard/policy"
)

// healthy returns the facts of a host that has nothing to be found.
func healthy() *Facts {
	f := &Facts{
		Loaded: true, Count: 2000, Left: 2000, Memory: survey.Memory{Total: 8 * gib, Entry: 256, Bucket: 8},
		CPUs: make([]procfs.ConntrackStatEntry, 2), Later: make([]procfs.ConntrackStatEntry, 2), Waited: 3 * time.Second,
		Table: Table{Listed: 2000, Whole: true},
		Settings: map[string]int{"nf_conntrack_max": 262144, "nf_conntrack_buckets": 262144, established: oneDay,
			"nf_conntrack_tcp_loose": 1, "nf_conntrack_tcp_be_liberal": 0, "nf_conntrack_tcp_max_retrans": 3},
	}
	for _, t := range timeouts {
		f.Settings["nf_conntrack_"+t.name] = t.usual
	}
	return f
}

// with changes settings, given as names and values.
func (f *Facts) with(pairs ...any) *Facts {
	for pair := range slices.Chunk(pairs, 2) {
		f.Settings[pair[0].(string)] = pair[1].(int)
	}
	return f
}

var cases = []struct {
	name   string
	change func(*Facts)
	want   string // ids with severities, but for ok, in the order of the catalogue
}{
	{"healthy", func(*Facts) {}, ""},
	{"no root", func(f *Facts) { f.Unread = []string{"list: operation not permitted"} }, "not-read:warning"},
	{"not loaded", func(f *Facts) { *f = Facts{Files: []Assignment{{"/etc/x", 1, "k", "nf_conntrack_max", 7}}} },
		"not-loaded:info setting-lost:warning"},
	{"elsewhere", func(f *Facts) { f.Count, f.Elsewhere, f.Table.Listed = 0, 5000, 0 }, "wrong-namespace:warning"},
	{"elsewhere, but it was here", func(f *Facts) {
		f.Count, f.Elsewhere, f.Table.Listed, f.Daemon = 0, 75, 0, &Daemon{Level: 8, Peak: 118}
	}, ""},
	{"elsewhere, and untracked here", func(f *Facts) {
		f.Count, f.Elsewhere, f.Table.Listed, f.Rules.Notrack = 0, 75, 0, []string{"chain pre of table ip raw"}
	}, "notrack:info"},
	{"no ordinary day", func(f *Facts) {
		f.Daemon = &Daemon{Level: 1, Waits: "the table is fuller than the lowest mark", Watched: time.Hour}
	}, "no-ordinary-day:warning"},
	{"started in an attack", func(f *Facts) {
		f.Daemon = &Daemon{Level: 8, Waits: "the table is fuller than the lowest mark", Watched: time.Minute}
	}, ""},
	{"three quarters", func(f *Facts) { f.Count = 200000; f.Table.Listed = 200000 }, "fill:warning"},
	{"full", func(f *Facts) { f.Count = 262144; f.Table.Listed = 262144 }, "fill:critical"},
	{"no limit", func(f *Facts) { f.with("nf_conntrack_max", 0) }, ""},
	{"a peak", func(f *Facts) { f.Daemon = &Daemon{Peak: 240000} }, "peak:warning"},
	{"drops long ago", func(f *Facts) { f.CPUs[0].Drop, f.Later[0].Drop = 9, 9 }, "refused:warning"},
	{"drops now", func(f *Facts) { f.CPUs[0].Drop, f.Later[0].Drop = 9, 12 }, "refused:critical"},
	{"races", func(f *Facts) {
		f.CPUs[1] = procfs.ConntrackStatEntry{Drop: 9, InsertFailed: 9}
		f.Later[1] = f.CPUs[1]
	}, "lost-races:info"},
	{"early drops", func(f *Facts) { f.CPUs[1].EarlyDrop, f.Later[1].EarlyDrop = 1, 1 }, "early-drops:warning"},
	{"restarts", func(f *Facts) { f.CPUs[1].SearchRestart = 7 }, "search-restarts:info"},
	{"uncollected", func(f *Facts) { f.Count = 5000 }, "uncollected:info"},
	{"low", func(f *Facts) { f.with("nf_conntrack_max", 65536) }, "max-low:warning"},
	{"low, but all that a small machine has", func(f *Facts) {
		f.Memory.Total = gib
		f.with("nf_conntrack_max", 8192)
		f.Count = 100
		f.Table.Listed = 100
	}, ""},
	{"high", func(f *Facts) { f.Memory.Total = gib / 8 }, "max-high:warning"},
	{"buckets", func(f *Facts) { f.with("nf_conntrack_buckets", 16384) }, "buckets:warning"},
	{"buckets of an old kernel", func(f *Facts) { f.with("nf_conntrack_buckets", 65536) }, ""},
	{"five days", func(f *Facts) { f.with(established, fiveDays) }, "timeout-established:info"},
	{"five days, stuck", func(f *Facts) { f.with(established, fiveDays); f.Table.Idle = 1500 },
		"timeout-established:warning idle:warning"},
	{"kept open", func(f *Facts) { f.Table.Idle = 500 }, "idle:info"},
	{"older than their timeout", func(f *Facts) { f.Table.Older = 500 }, "old-timeout:info"},
	{"cut off", func(f *Facts) { f.with(established, 600) }, "timeout-short:warning"},
	{"shortened by the daemon", func(f *Facts) {
		f.with(established, 600, "nf_conntrack_udp_timeout", 5, "nf_conntrack_tcp_loose", 0)
		f.Daemon = &Daemon{Level: 6}
	}, ""},
	{"long", func(f *Facts) { f.with("nf_conntrack_tcp_timeout_time_wait", 600) }, "timeout-long:warning"},
	{"short", func(f *Facts) { f.with("nf_conntrack_udp_timeout", 5) }, "timeout-short:warning"},
	{"switches", func(f *Facts) {
		f.with("nf_conntrack_tcp_loose", 0, "nf_conntrack_tcp_be_liberal", 1, "nf_conntrack_tcp_max_retrans", 5)
	}, "tcp-loose:info tcp-be-liberal:info tcp-max-retrans:info"},
	{"overwritten", func(f *Facts) {
		f.Files = []Assignment{{"/etc/a", 1, "k", "nf_conntrack_max", 7}}
	}, "setting-lost:warning"},
	{"the last line counts", func(f *Facts) {
		f.Files = []Assignment{{"/etc/a", 1, "k", "nf_conntrack_max", 7}, {"/etc/b", 1, "k", "nf_conntrack_max", 262144}}
	}, ""},
	{"files of the host, seen from a container", func(f *Facts) {
		f.Shared, f.Files = true, []Assignment{{"/etc/a", 1, "k", "nf_conntrack_max", 7}}
	}, "setting-lost:info"},
	{"an old name", func(f *Facts) { f.Files = []Assignment{{"/etc/a", 1, "net.ipv4.ip_conntrack_max", "", 7}} },
		"setting-unknown:warning"},
	{"a late module", func(f *Facts) {
		f.Module.Loadable, f.Files = true, []Assignment{{"/etc/a", 1, "k", "nf_conntrack_max", 262144}}
	}, "module-late:warning"},
	{"half-open", func(f *Facts) { f.Table.HalfOpen, f.Table.Unreplied = 1200, 1200 }, "half-open:warning"},
	{"nobody answers", func(f *Facts) { f.Table.Unreplied = 1200 }, "unreplied:warning"},
	{"own", func(f *Facts) { f.Table.Loopback, f.Table.Own = 2600, 400 }, "own-traffic:info"},
	{"a little of its own", func(f *Facts) { f.Table.Loopback, f.Table.Own = 20, 4 }, ""},
	{"much of its own", func(f *Facts) { f.Table.Loopback = 30000 }, "own-traffic:warning"},
	{"INVALID", func(f *Facts) { f.Later[0].Invalid = 900 }, "invalid:warning"},
	{"one way", func(f *Facts) { f.OneWay = 3; f.Rules.DropInvalid = []string{"chain input"} }, "one-way:warning"},
	{"drops INVALID", func(f *Facts) { f.Rules.DropInvalid = []string{"chain input"} }, ""},
	{"notrack", func(f *Facts) { f.Rules.Notrack = []string{"chain raw"} }, "notrack:info"},
	{"candidates", func(f *Facts) {
		f.Services = []policy.Selector{{Protocol: policy.UDP, Port: 53}, {Protocol: policy.TCP, Port: 21}}
		f.Pinned = map[policy.Selector]string{{Protocol: policy.TCP, Port: 21}: "a helper"}
		f.Table.Local = map[Port]int{{17, 53}: 900, {6, 21}: 9}
		f.Table.Group, f.Table.Overlays = 5, map[string]int{"vxlan": 7}
	}, "notrack-candidates:info"},
	{"a helper for everybody", func(f *Facts) { f.with("nf_conntrack_helper", 1) }, "helper-auto:warning"},
	{"a helper at work", func(f *Facts) {
		f.Table.Helped, f.Table.Helps = 2, map[Port]int{{6, 21}: 2}
	}, "helper-used:info"},
	{"a helper that idles", func(f *Facts) { f.Helpers = []string{"nf_conntrack_ftp"} }, "helper-loaded:info"},
	{"a gateway", func(f *Facts) { f.Rules.NAT = []string{"chain post"}; f.Table.Translated = 1000 }, "nat:info"},
	{"half of the ports", func(f *Facts) {
		f.Table.Ports = []PortUse{{Protocol: 6, Entries: 40000}}
	}, "ports-left:warning"},
	{"no ports left", func(f *Facts) {
		f.Table.Ports = []PortUse{{Protocol: 6, Entries: 64000}}
	}, "ports-left:critical"},
	{"both kinds of rules", func(f *Facts) { f.Legacy, f.Rules.Tables = []string{"iptables filter"}, []string{"inet f"} },
		"legacy-and-nft:warning"},
	{"legacy alone", func(f *Facts) { f.Legacy = []string{"iptables filter"} }, ""},
	{"others", func(f *Facts) {
		f.Rules.Tables = []string{"inet firewalld", "ip kube-proxy", "inet f2b-table", "ip crowdsec"}
		f.Rules.Chains = []string{"DOCKER-USER", "ufw-user-input", "input"}
	}, "owner:info owner:info owner:info owner:info owner:info owner:info"},
	{"saved", func(f *Facts) { f.Saved = []SavedTable{{"/etc/nftables.conf", 3, 9}} }, "saved-ruleset:warning"},
}

// Each host has exactly the findings that it should have. What every host has is left out.
func TestJudge(t *testing.T) {
	seen := make(map[ID]bool)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := healthy()
			c.change(f)
			var got []string
			all := Judge(f)
			for _, found := range all {
				seen[found.ID] = true
				checkFinding(t, found)
				if found.Severity != OK && found.ID != TimeoutAdvice && found.ID != DropInvalid {
					got = append(got, fmt.Sprintf("%s:%s", found.ID, found.Severity))
				}
			}
			if want := strings.Fields(c.want); !slices.Equal(sorted(got), sorted(want)) {
				t.Errorf("found %v, want %v", got, want)
			}
			if !slices.IsSortedFunc(all, func(a, b Finding) int { return int(b.Severity) - int(a.Severity) }) {
				t.Error("the worst does not come first")
			}
		})
	}
	for _, kind := range Catalogue() {
		if !seen[kind.ID] {
			t.Errorf("no host has %s", kind.ID)
		}
	}
}

func sorted(list []string) []string {
	list = slices.Clone(list)
	slices.Sort(list)
	return list
}

// checkFinding sees that a finding is complete and no worse than the catalogue says.
func checkFinding(t *testing.T, found Finding) {
	t.Helper()
	i := slices.IndexFunc(Catalogue(), func(k Kind) bool { return k.ID == found.ID })
	switch {
	case i < 0:
		t.Errorf("the catalogue lacks %s", found.ID)
	case found.Severity > Catalogue()[i].Worst:
		t.Errorf("%s is %s, worse than the catalogue says", found.ID, found.Severity)
	case found.Title == "" || found.Sure == "" || found.Do == nil:
		t.Errorf("%s is not complete: %+v", found.ID, found)
	case found.Severity != OK && (found.Evidence == "" || found.Why == ""):
		t.Errorf("%s does not say why: %+v", found.ID, found)
	case found.Severity >= Warning && len(found.Do) == 0:
		t.Errorf("%s does not say what to do: %+v", found.ID, found)
	}
	for _, text := range append(found.Do, found.Title, found.Evidence, found.Why) {
		if strings.Contains(text, "%!") || strings.Contains(text, "\n") {
			t.Errorf("%s: %q", found.ID, text)
		}
	}
}

// Every constant of the source is in the catalogue, once.
func TestCatalogue(t *testing.T) {
	text, err := os.ReadFile("catalogue.go")
	if err != nil {
		t.Fatal(err)
	}
	ids := regexp.MustCompile(`(?m)ID = "([a-z-]+)"$`).FindAllStringSubmatch(string(text), -1)
	if len(ids) == 0 || len(ids) != len(Catalogue()) {
		t.Errorf("%d constants, %d kinds", len(ids), len(Catalogue()))
	}
	for _, m := range ids {
		if n := len(slices.DeleteFunc(Catalogue(), func(k Kind) bool { return string(k.ID) != m[1] })); n != 1 {
			t.Errorf("%s is there %d times", m[1], n)
		}
	}
}

// The drop-in has each setting once, with the value of the worst finding, and says why.
func TestDropIn(t *testing.T) {
	f := healthy().with(established, fiveDays, "nf_conntrack_max", 65536, "nf_conntrack_buckets", 1024)
	f.Daemon = &Daemon{Peak: 60000}
	var b strings.Builder
	WriteDropIn(&b, f, Judge(f))
	for _, want := range []string{"\nnet.netfilter.nf_conntrack_max = 262144\n", "hashsize=262144 >",
		"\nnet.netfilter.nf_conntrack_buckets = 262144\n", "\nnet.netfilter." + established + " = 86400\n",
		"modules-load.d"} {
		if strings.Count(b.String(), want) != 1 {
			t.Errorf("%q is not there once:\n%s", want, &b)
		}
	}
	b.Reset()
	WriteDropIn(&b, healthy(), Judge(healthy()))
	if strings.Contains(b.String(), "net.netfilter") || !strings.Contains(b.String(), "Nothing to change") {
		t.Errorf("a healthy host gets\n%s", &b)
	}
}

// A limit is only raised as far as the memory allows, and advice never lowers what a host needs.
func TestWanted(t *testing.T) {
	for _, c := range []struct{ memory, limit, peak, want int }{
		{8 * gib, 65536, 1000, 262144},
		{8 * gib, 262144, 500000, 1 << 20},
		{gib, 65536, 60000, 131072},
		{gib / 4, 2048, 10 << 20, 254200},
		{gib / 16, 1 << 20, 1 << 20, 1 << 20},
		{0, 65536, 60000, 131072},
	} {
		f := healthy().with("nf_conntrack_max", c.limit)
		f.Memory.Total, f.Count = c.memory, c.peak
		if got := f.wanted(); got != c.want {
			t.Errorf("%+v: wanted %d", c, got)
		}
	}
}

// Space is bounded and frequent keys are found all the same.
func TestLeaders(t *testing.T) {
	l := make(leaders[netip.Addr])
	often, addr := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.0.0.0")
	for range 3 * mostLeaders {
		addr = addr.Next()
		l.add(addr)
		l.add(often)
	}
	if top := l.largest(1)[0]; top.key != often || top.n < 3*mostLeaders-6 || len(l) > mostLeaders {
		t.Errorf("%v has %d, with %d kept", top.key, top.n, len(l))
	}
}

// The findings of docs/operation.md are those of the catalogue.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("../..", "docs/operation.md"))
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	want.WriteString("| finding | at worst | it says |\n| --- | --- | --- |\n")
	for _, k := range Catalogue() {
		fmt.Fprintf(&want, "| `%s` | %s | %s |\n", k.ID, k.Worst, k.Says)
	}
	if !strings.Contains(string(text), "\n"+want.String()+"\n") {
		t.Errorf("docs/operation.md should have this table:\n%s", &want)
	}
}
