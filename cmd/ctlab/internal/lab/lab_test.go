package lab

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"ctguard/agent/conntrack/conntracktest"
	"ctguard/cmd/ctlab/internal/flood"
	"ctguard/cmd/ctlab/internal/role"
)

func TestMain(m *testing.M) {
	role.Hook(Roles())
	os.Exit(m.Run())
}

func TestScenarioIsChecked(t *testing.T) {
	for want, sc := range map[string]Scenario{
		"unknown attack":   {Attack: "rain"},
		"unknown topology": {Topology: "ring"},
		"unknown guard":    {Guard: "dog"},
		"a phase of":       {AttackFor: time.Hour},
		"capacity must":    {Capacity: 2048, Background: 4096},
		"not within the":   {Attack: "handshake", Guard: "ctguard", StartAt: time.Minute},
		"not after the":    {Attack: "handshake", Guard: "ctguard", StartAt: 3 * time.Second, RestartAt: 2 * time.Second},
	} {
		_, err := Run(context.Background(), sc)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want one with %q", err, want)
		}
	}
}

func TestCatalogueIsComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, a := range Attacks {
		if a.Name == "" || a.Summary == "" || len(a.Topologies) == 0 ||
			a.rate == 0 || a.port == 0 && a.kind != flood.Odd || seen[a.Name] {
			t.Errorf("attack %+v is incomplete or there twice", a)
		}
		seen[a.Name] = true
		for _, name := range a.Topologies {
			if _, ok := topologies[name]; !ok || Topologies[name] == "" {
				t.Errorf("attack %s is for topology %q, which does not exist", a.Name, name)
			}
		}
	}
}

func TestStateDiff(t *testing.T) {
	a := state{"same", "gone", "twice", "twice"}
	b := state{"same", "new", "twice"}
	got := strings.Join(a.diff(b), "|")
	if want := "+ new|- gone|- twice"; got != want {
		t.Errorf("difference is %q, want %q", got, want)
	}
	if d := a.diff(a); len(d) != 0 {
		t.Errorf("a state differs from itself: %q", d)
	}
}

func TestMergeConfig(t *testing.T) {
	into := map[string]any{"profile": "server", "table": map[string]any{"a": 1, "b": 2}}
	merge(into, map[string]any{"table": map[string]any{"b": 3}, "x": true})
	table := into["table"].(map[string]any)
	if into["profile"] != "server" || into["x"] != true || table["a"] != 1 || table["b"] != 3 {
		t.Errorf("merged to %v", into)
	}
}

// small is a scenario whose table fills within a second or two of the attack.
func small(guard string) Scenario {
	return Scenario{
		Guard: guard, Capacity: 8192, Calm: time.Second, AttackFor: 4 * time.Second, After: time.Second,
	}
}

// The damage is real: without a guard new connections fail, during the attack and after it,
// while those that stood go on.
func TestFloodsHurtAnUnprotectedHost(t *testing.T) {
	conntracktest.Privileged(t, "nft")
	for _, attack := range []string{"handshake", "udp"} {
		t.Run(attack, func(t *testing.T) {
			sc := small("none")
			sc.Attack = attack
			testDamage(t, sc)
		})
	}
}

// testDamage runs a scenario without a guard.
func testDamage(t *testing.T, sc Scenario) {
	res, err := Run(t.Context(), sc)
	if err != nil {
		t.Fatal(err)
	}
	if got := share(t, res.HTTP.Calm); got < 99 {
		t.Errorf("before the attack %.1f %% were served, want all", got)
	}
	// During, not After: whenever the kernel collects a few hundred expired entries, even a
	// full table has room for a second.
	if got := share(t, res.HTTP.During); got > 50 {
		t.Errorf("under attack %.1f %% were served, want damage", got)
	}
	if res.Fill.Peak < 99 || res.Fill.Drops == 0 {
		t.Errorf("fill reached %.0f %% with %d drops, want a full table", res.Fill.Peak, res.Fill.Drops)
	}
	if res.Lasting.Opened == 0 || res.Lasting.Lost > 0 {
		t.Errorf("%d of %d lasting connections were lost, a full table takes none", res.Lasting.Lost, res.Lasting.Opened)
	}
	if res.SecondsToServed != nil {
		t.Errorf("the host recovered by itself after %v s", *res.SecondsToServed)
	}
}

// The same flood against a table that has room hurts nobody: what the test above sees
// is the table, not the machine.
func TestControlRunIsUnharmed(t *testing.T) {
	conntracktest.Privileged(t, "nft")
	res, err := Run(t.Context(), small("control"))
	if err != nil {
		t.Fatal(err)
	}
	if got := share(t, res.HTTP.During); got < 99 || res.Fill.Drops != 0 {
		t.Errorf("%.1f %% were served with %d drops: this machine is too slow for the attack", got, res.Fill.Drops)
	}
}

func share(t *testing.T, v *float64) float64 {
	t.Helper()
	if v == nil {
		t.Fatal("the clients asked for nothing")
	}
	return *v
}

// fail2ban bans the sources of a flood, and takes that back.
func TestFail2banIsARealGuard(t *testing.T) {
	if testing.Short() {
		t.Skip("a flood of seconds")
	}
	conntracktest.Privileged(t, fail2banPrograms...)
	sc := small("fail2ban")
	sc.Attack, sc.Sources, sc.AttackFor = "handshake", 20, 8*time.Second
	res, err := Run(t.Context(), sc)
	if err != nil {
		t.Fatal(err)
	}
	banned := func(line string) bool { return strings.Contains(line, "198.18.") }
	if !slices.ContainsFunc(res.AtWork, banned) || len(res.LeftBehind) > 0 {
		t.Errorf("at work %q, left behind %q", res.AtWork, res.LeftBehind)
	}
	if res.Guard.CPUSeconds == 0 || res.Guard.PeakRSSKiB == 0 {
		t.Errorf("its cost is %+v", res.Guard)
	}
}
