package state

import (
	"errors"
	"maps"
	"net/netip"
	"testing"
	"time"

	"ctguard/policy"
)

// At a moment of a start of the kernel: the state directory as a process finds it then.
func atUptime(dir, boot string, up time.Duration) *Dir {
	d := At(dir)
	d.uptime = func() (string, time.Duration) { return boot, up }
	return d
}

// Somebody sets the clock, forward or back, and ctguard starts again a minute later: who is logged in, who is known
// and what an operator said go on as if nobody had.
func TestClockIsSet(t *testing.T) {
	const up, passed, left = 20 * time.Minute, time.Minute, 30 * time.Minute
	source := policy.Source{Prefix: netip.MustParsePrefix("192.0.2.1/32")}
	class := policy.FlowClass{Protocol: 17, Port: 4789}
	for _, jump := range []time.Duration{0, time.Hour, -time.Hour, 30 * 24 * time.Hour, -30 * 24 * time.Hour} {
		now, dir := time.Now(), t.TempDir()
		login := Login{netip.MustParseAddrPort("192.0.2.1:22"), netip.MustParseAddrPort("192.0.2.2:1024"), now.Add(-up)}
		before := atUptime(dir, "this one", up)
		if err := errors.Join(
			before.KeepLogins([]Login{login}, now),
			before.KeepDay(&policy.OrdinaryDay{Updated: now, Sources: map[policy.Source]*policy.Usual{source: {Assured: 40}},
				Silent:   map[policy.FlowClass]time.Time{class: now},
				Silences: map[string]policy.Silence{"x": {Seconds: 1, Seen: now}}}, now),
			before.NoteRetimed(map[string]int{"over": int(passed.Seconds()) / 2, "there": int(left.Seconds())}, now),
			before.Remember(Words{&policy.Override{Kind: policy.Pin, Until: now.Add(left), Reason: "x"},
				[]policy.Word{{Prefix: source.Prefix, Release: true, Until: now.Add(left), Reason: "x"}}}),
		); err != nil {
			t.Fatal(err)
		}
		after := atUptime(dir, "this one", up+passed)
		now = now.Round(0).Add(passed + jump)
		same := func(what string, got time.Time, ago time.Duration) {
			if late := now.Add(-ago).Sub(got).Abs(); late > time.Second { // so long may writing take
				t.Errorf("the clock set by %s: %s is %s off", jump, what, late)
			}
		}
		logins, err := after.Logins(now)
		if err != nil || len(logins) != 1 {
			t.Fatalf("the clock set by %s: logins %v, %v", jump, logins, err)
		}
		same("a login", logins[0].Since, up+passed)
		day, err := after.Day(now)
		if err != nil || day.Usual(source).Assured != 40 {
			t.Fatalf("the clock set by %s: day %+v, %v", jump, day, err)
		}
		same("the day", day.Updated, passed)
		same("a class without answers", day.Silent[class], passed)
		same("a silence", day.Silences["x"].Seen, passed)
		words, err := after.Words(now)
		if err != nil || words.Override == nil || len(words.Words) != 1 {
			t.Fatalf("the clock set by %s: words %+v, %v", jump, words, err)
		}
		given, err := after.Retimed(now)
		if err != nil || !maps.Equal(given, map[string]int{"there": int(left.Seconds())}) {
			t.Errorf("the clock set by %s: entries were given %v, %v", jump, given, err)
		}
		same("the hold", words.Override.Until, passed-left)
		same("the release", words.Words[0].Until, passed-left)
	}
}

// A host without a battery for its clock starts in the past: who was known is known, and nothing of it is yet to come.
func TestClockBehindAfterReboot(t *testing.T) {
	now, dir := time.Now(), t.TempDir()
	source := policy.Source{Prefix: netip.MustParsePrefix("192.0.2.1/32")}
	day := &policy.OrdinaryDay{Updated: now, Sources: map[policy.Source]*policy.Usual{source: {Assured: 40}}}
	if err := atUptime(dir, "the last one", time.Hour).KeepDay(day, now); err != nil {
		t.Fatal(err)
	}
	now = now.Add(-20 * time.Minute)
	kept, err := atUptime(dir, "this one", time.Minute).Day(now)
	if err != nil || kept.Usual(source).Assured != 40 || kept.Updated.After(now) {
		t.Errorf("at %s there is %+v, %v", now, kept, err)
	}
}
