package nft

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntrackfill"
	"ctguard/policy"
)

// foreign is a ruleset of the host's own that must never change.
const foreign = `
table inet filter {
	set friends { type ipv4_addr; flags interval; elements = { 203.0.113.0/24 } }
	chain input {
		type filter hook input priority 0; policy accept;
		ct state established,related accept
		ip saddr @friends accept
	}
}
`

// full is a posture that uses every part of the table.
func full() Desired {
	for _, c := range cases() {
		if c.name == "all" {
			return c.desired
		}
	}
	panic("no such case")
}

func intact(t testing.TB, table *Table, want bool) {
	t.Helper()
	got, err := table.Intact()
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Fatalf("intact: %v, want %v", got, want)
	}
}

func generation(t testing.TB, table *Table) uint32 {
	t.Helper()
	gen, err := table.generation()
	if err != nil {
		t.Fatal(err)
	}
	return gen
}

func TestLevelZeroLeavesNoTrace(t *testing.T) {
	inNewNetNS(t)
	feed(t, foreign)
	before := run(t, "nft list ruleset")
	table := open(t)
	apply(t, table, Desired{Allow: full().Allow})
	if gen := generation(t, table); gen != 2 { // 1 in a new namespace, and the foreign ruleset
		t.Errorf("applying nothing wrote something: generation %d", gen)
	}
	for range 2 {
		apply(t, table, full())
		apply(t, table, Desired{Allow: full().Allow})
		if diff := cmp.Diff(before, run(t, "nft list ruleset")); diff != "" {
			t.Errorf("ruleset (-before +after):\n%s", diff)
		}
		intact(t, table, true)
	}
	apply(t, table, full())
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, run(t, "nft list ruleset")); diff != "" {
		t.Errorf("ruleset (-before +after Close):\n%s", diff)
	}
}

func TestApplyAgainWritesNothing(t *testing.T) {
	for _, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			inNewNetNS(t)
			table := open(t)
			apply(t, table, c.desired)
			before := generation(t, table)
			for range 3 {
				apply(t, table, c.desired)
			}
			if after := generation(t, table); after != before {
				t.Errorf("generation went from %d to %d", before, after)
			}
			intact(t, table, true)
		})
	}
}

// TestEndsMoveOn follows one limit whose end is moved with every tick.
func TestEndsMoveOn(t *testing.T) {
	inNewNetNS(t)
	table := open(t)
	writes := func(at, until time.Time) bool {
		before := generation(t, table)
		d := Desired{Posture: policy.Posture{Limits: []policy.Limit{
			{Prefix: prefix("198.51.100.0/24"), Until: until},
			{Prefix: prefix("203.0.113.1/32")}, // keeps the rules
		}}}
		if err := table.Apply(d, at); err != nil {
			t.Fatal(err)
		}
		return generation(t, table) != before
	}
	at := func(seconds int) time.Time { return now.Add(time.Duration(seconds) * time.Second) }
	for _, step := range []struct {
		now, until time.Time
		writes     bool
	}{
		{at(0), at(80), true},
		{at(1), at(81), false},  // 1 of 80 seconds
		{at(10), at(90), false}, // 10 of 80: an eighth
		{at(11), at(91), true},
		{at(11), at(60), true},      // shortened
		{at(11), time.Time{}, true}, // never
		{at(12), time.Time{}, false},
		{at(12), at(72), true},
		{at(72), at(72), false}, // ended: the kernel removes it by itself
		{at(73), at(72), false}, // and it is not there any more
	} {
		if got := writes(step.now, step.until); got != step.writes {
			t.Errorf("at %v until %v: writes %v, want %v", step.now.Sub(now), step.until.Sub(now), got, step.writes)
		}
	}
}

func TestInvalidInput(t *testing.T) {
	inNewNetNS(t)
	table := open(t)
	apply(t, table, full())
	for _, c := range []struct {
		want    string
		desired Desired
	}{
		{"allow prefix invalid Prefix: not a prefix", Desired{Allow: []netip.Prefix{{}}}},
		{"limit prefix invalid Prefix: not a prefix", Desired{Posture: policy.Posture{Limits: []policy.Limit{{}}}}},
		{"notrack selector", Desired{Posture: policy.Posture{Notrack: []policy.Untracked{
			{Selector: policy.Selector{Protocol: "sctp", Port: 1}},
		}}}},
		{"notrack selector", Desired{Posture: policy.Posture{Notrack: []policy.Untracked{{}}}}},
	} {
		if err := table.Apply(c.desired, now); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %s", err, c.want)
		}
		if text := Render(c.desired, now); !strings.HasPrefix(text, "# "+c.want) || strings.Count(text, "\n") != 1 {
			t.Errorf("rendered %q, want %s in a comment", text, c.want)
		}
	}
	intact(t, table, true)
}

// TestInNetNS makes the table in another namespace than the caller's.
func TestInNetNS(t *testing.T) {
	inNewNetNS(t)
	there, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	if err := conntrackfill.Enter(); err != nil {
		t.Fatal(err)
	}
	table := open(t, InNetNS(int(there.Fd())))
	apply(t, table, full())
	intact(t, table, true)
	if out := run(t, "nft list ruleset"); out != "" {
		t.Errorf("made in the caller's namespace:\n%s", out)
	}
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	list(t)
}

// TestFlushRuleset removes everything in the middle.
func TestFlushRuleset(t *testing.T) {
	t.Run("owned", func(t *testing.T) {
		inNewNetNS(t)
		feed(t, foreign)
		table := open(t)
		apply(t, table, full())
		before := list(t)
		run(t, "nft flush ruleset")
		intact(t, table, true)
		if diff := cmp.Diff(before, list(t)); diff != "" {
			t.Errorf("table (-before +after):\n%s", diff)
		}
	})
	for _, disturb := range []string{
		"flush ruleset",
		"delete table inet ctguard",
		"flush chain inet ctguard early",
		"flush set inet ctguard allow4",
		"flush set inet ctguard requests",
		"add rule inet ctguard late drop",
		"add chain inet ctguard more",
		"add counter inet ctguard more",
		"add set inet ctguard more { type ipv4_addr; }",
		"delete element inet ctguard limited4 { 203.0.113.0/24 }",
	} {
		t.Run("unowned, "+disturb, func(t *testing.T) {
			inNewNetNS(t)
			now = time.Now() // on a slow machine the tests before took longer than the limits last
			table := open(t, Unowned())
			apply := func() {
				t.Helper()
				if err := table.Apply(full(), now); err != nil {
					t.Fatal(err)
				}
			}
			apply()
			before := list(t)
			feed(t, foreign)
			intact(t, table, true)
			feed(t, disturb)
			intact(t, table, false)
			apply()
			intact(t, table, true)
			if diff := cmp.Diff(before, list(t)); diff != "" {
				t.Errorf("table (-before +after):\n%s", diff)
			}
		})
	}
}

// TestChangeDoesNotHide changes the table after somebody else did: the change is none that a look
// at the generation may take for the last one.
func TestChangeDoesNotHide(t *testing.T) {
	inNewNetNS(t)
	table := open(t, Unowned())
	apply(t, table, full())
	feed(t, "add rule inet ctguard late drop\n")
	d := full()
	d.Allow = nil
	apply(t, table, d)
	intact(t, table, false)
	apply(t, table, d)
	intact(t, table, true)
}

// TestApplyRepairs changes a table whose loss nobody has told it of.
func TestApplyRepairs(t *testing.T) {
	inNewNetNS(t)
	table := open(t, Unowned())
	apply(t, table, full())
	run(t, "nft flush ruleset")
	d := full()
	d.Posture.Notrack = nil
	apply(t, table, d)
	intact(t, table, true)
	got := list(t)
	fresh := open(t, Unowned())
	apply(t, fresh, d)
	if diff := cmp.Diff(list(t), got); diff != "" {
		t.Errorf("table (-fresh +repaired):\n%s", diff)
	}
}

func TestRevert(t *testing.T) {
	inNewNetNS(t)
	feed(t, foreign)
	before := run(t, "nft list ruleset")
	if removed, err := Revert(); removed || err != nil {
		t.Errorf("revert of nothing: %v, %v", removed, err)
	}
	apply(t, open(t, Unowned()), full())
	if found, err := Leftover(); !found || err != nil {
		t.Errorf("left-over: %v, %v", found, err)
	}
	if removed, err := Revert(); !removed || err != nil {
		t.Errorf("revert: %v, %v", removed, err)
	}
	if diff := cmp.Diff(before, run(t, "nft list ruleset")); diff != "" {
		t.Errorf("ruleset (-before +after):\n%s", diff)
	}
	if found, err := Leftover(); found || err != nil {
		t.Errorf("left-over after revert: %v, %v", found, err)
	}
}

// holderEnv makes the test binary hold a table until it is killed.
const holderEnv = "CTGUARD_TEST_HOLD_TABLE"

func TestMain(m *testing.M) {
	if os.Getenv(holderEnv) != "" {
		hold()
	}
	os.Exit(m.Run())
}

func hold() {
	table, err := Open()
	if err == nil {
		err = table.Apply(full(), now)
	}
	fmt.Println(err)
	select {}
}

// TestKilledOwner kills a process that has a table, and meets its table before that.
func TestKilledOwner(t *testing.T) {
	inNewNetNS(t)
	feed(t, foreign)
	before := run(t, "nft list ruleset")
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), holderEnv+"=1")
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { child.Process.Kill() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "<nil>\n" {
		t.Fatalf("child says %q, %v", line, err)
	}
	held := list(t)

	table := open(t)
	if err := table.Apply(full(), now); !errors.Is(err, ErrOwned) {
		t.Errorf("apply: %v, want ErrOwned", err)
	}
	intact(t, table, false)
	apply(t, table, Desired{}) // nothing of its own to remove
	intact(t, table, true)
	if _, err := Revert(); !errors.Is(err, ErrOwned) {
		t.Errorf("revert: %v, want ErrOwned", err)
	}
	if _, err := Leftover(); !errors.Is(err, ErrOwned) {
		t.Errorf("left-over: %v, want ErrOwned", err)
	}
	if out, err := try("nft delete table inet ctguard", ""); err == nil {
		t.Errorf("nft could delete the table: %s", out)
	}
	if diff := cmp.Diff(held, list(t)); diff != "" {
		t.Errorf("table (-before +after others tried):\n%s", diff)
	}

	child.Process.Kill()
	child.Wait()
	if diff := cmp.Diff(before, run(t, "nft list ruleset")); diff != "" {
		t.Errorf("ruleset (-before +after):\n%s", diff)
	}
	apply(t, table, full())
	if diff := cmp.Diff(held, list(t)); diff != "" {
		t.Errorf("table (-the killed one's +the next one's):\n%s", diff)
	}
}

// A table with as many limits as there may be is made in one batch, and changed in another.
func TestManyLimits(t *testing.T) {
	inNewNetNS(t)
	table := open(t)
	limits := many(1<<16, now.Add(time.Hour))
	d := Desired{Posture: policy.Posture{Limits: limits[:1<<15], LimitRate: 1, LimitBurst: 1}}
	apply(t, table, d)
	d.Posture.Limits = limits
	apply(t, table, d)
	if ok, err := table.Intact(); err != nil || !ok {
		t.Errorf("intact: %v, %v", ok, err)
	}
}
