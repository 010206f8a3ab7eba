package state

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"ctguard/policy"
)

// What a newer ctguard wrote is refused, with the version, and is still there after this one has written its own.
func TestNewerVersions(t *testing.T) {
	now := time.Now()
	day := policy.OrdinaryDay{Updated: now}
	for name, one := range map[string]struct {
		known int
		path  func(*Dir) string
		read  func(*Dir) error
		write func(*Dir) error
	}{
		"words": {wordsVersion, (*Dir).words, func(d *Dir) error { _, err := d.Words(now); return err },
			func(d *Dir) error { return d.Remember(Words{}) }},
		"ordinary day": {dayVersion, (*Dir).day, func(d *Dir) error { _, err := d.Day(now); return err },
			func(d *Dir) error { return d.keep(&day, now) }},
		"kernel": {kernelVersion, (*Dir).kernel,
			func(d *Dir) error { _, err := d.Kernel("/proc", new(bool)); return err },
			func(d *Dir) error { return d.KeepKernel("/proc", true) }},
	} {
		t.Run(name, func(t *testing.T) {
			d := At(t.TempDir())
			text := fmt.Sprintf(`{"version": %d, "new": true}`, one.known+1)
			if err := os.WriteFile(one.path(d), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprintf("version %d, and this ctguard knows versions up to %d", one.known+1, one.known)
			if err := one.read(d); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("read: %v, want %q", err, want)
			}
			if kept, _ := os.ReadFile(one.path(d)); string(kept) != text {
				t.Errorf("after reading there is %q", kept)
			}
			if err := one.write(d); err != nil {
				t.Fatal(err)
			}
			aside := fmt.Sprintf("%s.v%d", one.path(d), one.known+1)
			if kept, _ := os.ReadFile(aside); string(kept) != text {
				t.Errorf("after writing %s has %q", aside, kept)
			}
			if err := one.read(d); err != nil {
				t.Errorf("its own: %v", err)
			}
		})
	}
}

// Words that were written before they had a version are understood.
func TestWordsWithoutVersion(t *testing.T) {
	d, now := At(t.TempDir()), time.Now()
	text := fmt.Sprintf(`{"override": null, "words": [{"prefix": "192.0.2.0/24", "until": %q, "reason": "x"}]}`,
		now.Add(time.Hour).Format(time.RFC3339))
	if err := os.WriteFile(d.words(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if words, err := d.Words(now); err != nil || len(words.Words) != 1 {
		t.Errorf("%+v, %v; want one word", words, err)
	}
}

// Who is logged in outlives the process for an hour; what is older, of a time to come, or newer counts for nothing.
func TestLogins(t *testing.T) {
	now := time.Now().Round(0)
	list := []Login{{
		netip.MustParseAddrPort("192.0.2.1:22"), netip.MustParseAddrPort("192.0.2.2:1024"), now.Add(-time.Hour),
	}}
	dir := t.TempDir()
	if err := atUptime(dir, "this one", time.Hour).KeepLogins(list, now); err != nil {
		t.Fatal(err)
	}
	for after, want := range map[time.Duration]int{0: 1, loginsLast: 1, loginsLast + time.Second: 0, -time.Second: 0} {
		got, err := atUptime(dir, "this one", time.Hour+after).Logins(now.Add(after))
		if err != nil || len(got) != want {
			t.Errorf("after %s: %v, %v; want %d", after, got, err, want)
		}
		if want == 1 && (got[0].Local != list[0].Local || got[0].Remote != list[0].Remote ||
			!got[0].Since.Equal(list[0].Since)) {
			t.Errorf("after %s: %v, want %v", after, got, list)
		}
	}
	d := At(dir)
	if err := os.WriteFile(d.logins(), []byte(`{"version": 2}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Logins(now); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("of a newer version: %v", err)
	}
	var none *Dir // a dry run's
	if err := none.KeepLogins(list, now); err != nil {
		t.Error(err)
	}
}
