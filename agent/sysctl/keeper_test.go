package sysctl

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Settings that the tests change.
const (
	loose       = "nf_conntrack_tcp_loose"
	udp         = "nf_conntrack_udp_timeout"
	established = "nf_conntrack_tcp_timeout_established"
)

// fixture is a proc root and a state directory.
type fixture struct {
	*testing.T
	proc, dir string
}

// newFixture makes a host with the kernel's defaults of a few settings.
func newFixture(t *testing.T) *fixture {
	f := &fixture{t, t.TempDir(), t.TempDir()}
	f.file("sys/kernel/random/boot_id", "first boot\n")
	f.file("thread-self/ns/net", "")
	f.file("sys/net/netfilter/nf_conntrack_max", "65536\n")
	f.file("sys/net/netfilter/nf_conntrack_count", "5\n")
	for name, value := range map[string]int{loose: 1, udp: 30, established: 432000} {
		f.set(name, value)
	}
	return f
}

// file writes a file below the proc root.
func (f *fixture) file(path, text string) {
	f.Helper()
	path = filepath.Join(f.proc, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		f.Fatal(err)
	}
}

// set is what an administrator, or anybody else, does.
func (f *fixture) set(name string, value int) {
	f.Helper()
	f.file("sys/net/netfilter/"+name, strconv.Itoa(value)+"\n")
}

// refuse makes a setting, with a value of 65536, that nobody can write.
func (f *fixture) refuse(name string) {
	f.Helper()
	path := filepath.Join(f.proc, "sys/net/netfilter", name)
	if err := errors.Join(os.Remove(path), os.Symlink("/proc/sys/kernel/ngroups_max", path)); err != nil {
		f.Fatal(err)
	}
}

// allow puts an ordinary setting in the place of one that nobody could write.
func (f *fixture) allow(name string, value int) {
	f.Helper()
	if err := os.Remove(filepath.Join(f.proc, "sys/net/netfilter", name)); err != nil {
		f.Fatal(err)
	}
	f.set(name, value)
}

// values are the settings as the kernel has them.
func (f *fixture) values() map[string]int {
	f.Helper()
	settings, err := NewSettings(f.proc)
	if err != nil {
		f.Fatal(err)
	}
	all, err := settings.All()
	if err != nil {
		f.Fatal(err)
	}
	delete(all, "nf_conntrack_max")
	return all
}

// want compares the settings with what they should be; those not named have their defaults.
func (f *fixture) want(changed map[string]int) {
	f.Helper()
	want := map[string]int{loose: 1, udp: 30, established: 432000}
	maps.Copy(want, changed)
	if diff := cmp.Diff(want, f.values()); diff != "" {
		f.Errorf("settings (-want +got):\n%s", diff)
	}
}

// keeper is what a process that starts now has.
func (f *fixture) keeper() *Keeper {
	f.Helper()
	k, err := NewKeeper(f.proc, f.dir)
	if err != nil {
		f.Fatal(err)
	}
	return k
}

// journal is what is on disk; nil when there is none.
func (f *fixture) journal() map[string]Entry {
	f.Helper()
	text, err := os.ReadFile(filepath.Join(f.dir, journalName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var j Journal
	if err := errors.Join(err, json.Unmarshal(text, &j)); err != nil {
		f.Fatal(err)
	}
	return j.Settings
}

// left puts a journal on disk that a process of this boot and namespace left behind.
func (f *fixture) left(entries map[string]Entry) {
	f.Helper()
	j, err := here(f.proc)
	if err != nil {
		f.Fatal(err)
	}
	j.Settings = entries
	if err := j.save(f.dir); err != nil {
		f.Fatal(err)
	}
}

// apply applies what must go well and compares the changes.
func (f *fixture) apply(k *Keeper, wanted map[string]int, want ...string) {
	f.Helper()
	changes, err := k.Apply(wanted)
	if err != nil {
		f.Fatal(err)
	}
	f.wantChanges(changes, want...)
}

func (f *fixture) wantChanges(changes []Change, want ...string) {
	f.Helper()
	var got []string
	for _, c := range changes {
		got = append(got, strings.TrimPrefix(c.String(), "nf_conntrack_"))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		f.Errorf("changes (-want +got):\n%s", diff)
	}
}

func TestApplyAndRevert(t *testing.T) {
	f := newFixture(t)
	k := f.keeper()
	f.apply(k, map[string]int{loose: 0, udp: 20}, "tcp_loose 1 -> 0", "udp_timeout 30 -> 20")
	f.want(map[string]int{loose: 0, udp: 20})

	// What is no longer wanted goes back; what is wanted differently keeps its first value.
	f.apply(k, map[string]int{udp: 10}, "tcp_loose 0 -> 1", "udp_timeout 20 -> 10")
	f.want(map[string]int{udp: 10})
	if diff := cmp.Diff(map[string]Entry{udp: {First: 30, Before: 20, Written: 10}}, f.journal()); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}

	changes, err := k.Revert()
	if err != nil {
		t.Fatal(err)
	}
	f.wantChanges(changes, "udp_timeout 10 -> 30")
	f.want(nil)
	if f.journal() != nil || changed(k) != 0 {
		t.Error("a journal is left though everything is back")
	}
}

// Whatever was done is not done again: the loop applies the same wish many times a second.
func TestApplyIsIdempotent(t *testing.T) {
	f := newFixture(t)
	k := f.keeper()
	wanted := map[string]int{loose: 0, udp: 10}
	f.apply(k, wanted, "tcp_loose 1 -> 0", "udp_timeout 30 -> 10")
	journal, err := os.Stat(filepath.Join(f.dir, journalName))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		f.apply(k, wanted)
	}
	again, err := os.Stat(filepath.Join(f.dir, journalName))
	if err != nil || !os.SameFile(journal, again) {
		t.Errorf("the journal was written again (%v)", err)
	}
	f.want(wanted)

	// A value that somebody puts back to the first one is brought to the wish again.
	f.set(udp, 30)
	f.apply(k, wanted, "udp_timeout 30 -> 10")
}

// A setting that has the wanted value already is the administrator's.
func TestWantedAlready(t *testing.T) {
	f := newFixture(t)
	k := f.keeper()
	f.apply(k, map[string]int{udp: 30})
	if f.journal() != nil {
		t.Error("the journal claims what nobody changed")
	}
}

// The first values are on disk before the first write: where the journal can't be written, nothing
// is changed, and a write that never happened is in the journal.
func TestJournalComesFirst(t *testing.T) {
	t.Run("no journal, no change", func(t *testing.T) {
		f := newFixture(t)
		k := f.keeper()
		if err := os.Remove(f.dir); err != nil {
			t.Fatal(err)
		}
		if _, err := k.Apply(map[string]int{loose: 0}); err == nil {
			t.Error("no error")
		}
		f.want(nil)
		if changed(k) != 0 {
			t.Error("the keeper believes that it changed something")
		}
	})
	t.Run("a write that fails", func(t *testing.T) {
		f := newFixture(t)
		k := f.keeper()
		f.refuse(udp)
		changes, err := k.Apply(map[string]int{loose: 0, udp: 10, established: 600})
		if err == nil || !strings.Contains(err.Error(), udp) {
			t.Errorf("error %v does not name what could not be written", err)
		}
		f.wantChanges(changes, "tcp_loose 1 -> 0", "tcp_timeout_established 432000 -> 600")
		want := map[string]Entry{
			loose:       {First: 1, Before: 1, Written: 0},
			udp:         {First: 65536, Before: 65536, Written: 10},
			established: {First: 432000, Before: 432000, Written: 600},
		}
		if diff := cmp.Diff(want, f.journal()); diff != "" {
			t.Errorf("journal (-want +got):\n%s", diff)
		}

		// The next process finds a value that was never changed, and nothing to put back there.
		changes, err = f.keeper().Revert()
		if err != nil {
			t.Fatal(err)
		}
		f.wantChanges(changes, "tcp_loose 0 -> 1", "tcp_timeout_established 600 -> 432000")
		f.want(map[string]int{udp: 65536})
		if f.journal() != nil {
			t.Error("a journal is left")
		}
	})
}

// The next start puts back what a killed process left, at whatever point it was killed, and never
// writes over somebody else's newer value.
func TestRevertAfterCrash(t *testing.T) {
	for _, c := range []struct {
		name string
		left Entry
		now  int
		want string // the change; none where empty
		end  int
	}{
		{"after the write", Entry{First: 30, Before: 30, Written: 10}, 10, "udp_timeout 10 -> 30", 30},
		{"before the write", Entry{First: 30, Before: 30, Written: 10}, 30, "", 30},
		{"before a second write", Entry{First: 30, Before: 20, Written: 10}, 20, "udp_timeout 20 -> 30", 30},
		{"after a second write", Entry{First: 30, Before: 20, Written: 10}, 10, "udp_timeout 10 -> 30", 30},
		{"before it was put back", Entry{First: 30, Before: 10, Written: 30}, 10, "udp_timeout 10 -> 30", 30},
		{"after it was put back", Entry{First: 30, Before: 10, Written: 30}, 30, "", 30},
		{"somebody else wrote", Entry{First: 30, Before: 30, Written: 10}, 77,
			"udp_timeout is 77 now, which somebody else wrote: left alone", 77},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t)
			f.left(map[string]Entry{udp: c.left})
			f.set(udp, c.now)
			changes, err := f.keeper().Revert()
			if err != nil {
				t.Fatal(err)
			}
			if c.want == "" {
				f.wantChanges(changes)
			} else {
				f.wantChanges(changes, c.want)
			}
			f.want(map[string]int{udp: c.end})
			if f.journal() != nil {
				t.Error("a journal is left")
			}
		})
	}
}

// A journal of another boot or of another network namespace says nothing about these settings.
func TestForeignJournal(t *testing.T) {
	for name, move := range map[string]func(f *fixture){
		"another boot": func(f *fixture) { f.file("sys/kernel/random/boot_id", "second boot\n") },
		"another namespace": func(f *fixture) {
			f.file("thread-self/ns/other", "")
			if err := os.Rename(filepath.Join(f.proc, "thread-self/ns/other"),
				filepath.Join(f.proc, "thread-self/ns/net")); err != nil {
				f.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.left(map[string]Entry{udp: {First: 30, Before: 30, Written: 10}})
			f.set(udp, 10) // the administrator's choice, by chance the same
			move(f)
			k := f.keeper()
			if admin, err := k.Admin(); err != nil || admin[udp] != 10 {
				t.Errorf("administrator's value %d (%v), want 10", admin[udp], err)
			}
			f.apply(k, nil)
			f.want(map[string]int{udp: 10})
		})
	}
}

// A journal that can't be read is told of; what it might have said is not guessed.
func TestCorruptJournal(t *testing.T) {
	f := newFixture(t)
	path := filepath.Join(f.dir, journalName)
	if err := os.WriteFile(path, []byte(`{"boot": "first b`), 0o600); err != nil {
		t.Fatal(err)
	}
	f.set(udp, 10)
	if _, err := NewKeeper(f.proc, f.dir); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v does not name the file", err)
	}
	f.want(map[string]int{udp: 10})
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the journal is gone: %v", err)
	}
}

// What somebody else writes while ctguard works is theirs, is told of once, and is the
// administrator's value from then on.
func TestSomebodyElse(t *testing.T) {
	f := newFixture(t)
	k := f.keeper()
	wanted := map[string]int{udp: 10}
	f.apply(k, wanted, "udp_timeout 30 -> 10")
	f.set(udp, 77)
	f.apply(k, wanted, "udp_timeout is 77 now, which somebody else wrote: left alone")
	f.apply(k, wanted)
	f.want(map[string]int{udp: 77})
	if f.journal() != nil {
		t.Error("the journal still claims it")
	}
	f.apply(k, nil)
	f.want(map[string]int{udp: 77})

	// The next time it is wanted, it goes back to what it was then.
	f.apply(k, wanted, "udp_timeout 77 -> 10")
	f.apply(k, nil, "udp_timeout 10 -> 77")
}

func TestAdmin(t *testing.T) {
	f := newFixture(t)
	k := f.keeper()
	f.apply(k, map[string]int{loose: 0, udp: 10}, "tcp_loose 1 -> 0", "udp_timeout 30 -> 10")
	f.set(udp, 77)
	admin, err := k.Admin()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int{"nf_conntrack_max": 65536, loose: 1, udp: 77, established: 432000}
	if diff := cmp.Diff(want, admin); diff != "" {
		t.Errorf("administrator's values (-want +got):\n%s", diff)
	}
}

// A value that ctguard wrote before is not the administrator's because the next write failed.
func TestAdminAfterFailedWrite(t *testing.T) {
	f := newFixture(t)
	f.left(map[string]Entry{udp: {First: 30, Before: 20, Written: 10}})
	f.set(udp, 20)
	if admin, err := f.keeper().Admin(); err != nil || admin[udp] != 30 {
		t.Errorf("administrator's value %d (%v), want 30", admin[udp], err)
	}
}

// One setting that can't be read or written doesn't keep the others from going back.
func TestPartialFailure(t *testing.T) {
	f := newFixture(t)
	k := f.keeper()
	f.apply(k, map[string]int{loose: 0, udp: 10, established: 600},
		"tcp_loose 1 -> 0", "tcp_timeout_established 432000 -> 600", "udp_timeout 30 -> 10")
	f.file("sys/net/netfilter/"+established, "many\n")
	changes, err := k.Revert()
	if err == nil || !strings.Contains(err.Error(), established) {
		t.Errorf("error %v does not name what could not be read", err)
	}
	f.wantChanges(changes, "tcp_loose 0 -> 1", "udp_timeout 10 -> 30")

	// What is still to be put back stays in the journal, for the next time.
	if diff := cmp.Diff(map[string]Entry{established: {First: 432000, Before: 432000, Written: 600}},
		f.journal()); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
	f.set(established, 600)
	f.apply(f.keeper(), nil, "tcp_timeout_established 600 -> 432000")
	f.want(nil)
}

// A write that fails is tried again.
func TestFailedWriteIsTriedAgain(t *testing.T) {
	f := newFixture(t)
	k := f.keeper()
	f.refuse(udp)
	if _, err := k.Apply(map[string]int{udp: 10}); err == nil {
		t.Fatal("no error")
	}
	f.allow(udp, 65536)
	f.apply(k, map[string]int{udp: 10}, "udp_timeout 65536 -> 10")
	f.apply(k, nil, "udp_timeout 10 -> 65536")
}

// Where the journal can't be written, as on a full disk, nothing new is changed, but everything that
// it knows goes back.
func TestBackWithoutDisk(t *testing.T) {
	f := newFixture(t)
	k := f.keeper()
	f.apply(k, map[string]int{udp: 10}, "udp_timeout 30 -> 10")
	if err := os.RemoveAll(f.dir); err != nil {
		t.Fatal(err)
	}
	if changes, err := k.Apply(map[string]int{udp: 10, loose: 0}); err == nil || len(changes) > 0 {
		t.Errorf("changes %v, error %v; want no change and an error", changes, err)
	}
	f.want(map[string]int{udp: 10})
	changes, err := k.Revert()
	if err == nil || !strings.Contains(err.Error(), "journal") {
		t.Errorf("error %v does not name the journal", err)
	}
	f.wantChanges(changes, "udp_timeout 10 -> 30")
	f.want(nil)
}

// A setting that this kernel doesn't have is no fault.
func TestUnknownSetting(t *testing.T) {
	f := newFixture(t)
	f.apply(f.keeper(), map[string]int{"nf_conntrack_dccp_timeout_open": 7440})
	if f.journal() != nil {
		t.Error("the journal claims what is not there")
	}
}

// Without a state directory a keeper reads.
func TestReadOnlyKeeper(t *testing.T) {
	f := newFixture(t)
	f.left(map[string]Entry{udp: {First: 30, Before: 30, Written: 10}})
	f.set(udp, 10)
	k, err := NewKeeper(f.proc, "")
	if err != nil {
		t.Fatal(err)
	}
	if admin, err := k.Admin(); err != nil || admin[udp] != 10 {
		t.Errorf("administrator's value %d (%v), want 10", admin[udp], err)
	}
}

// Kernels before 2.6.20 had the settings elsewhere and under other names.
func TestOldNames(t *testing.T) {
	f := &fixture{t, t.TempDir(), t.TempDir()}
	f.file("sys/kernel/random/boot_id", "boot\n")
	f.file("thread-self/ns/net", "")
	f.file("sys/net/ipv4/netfilter/ip_conntrack_max", "65536\n")
	f.file("sys/net/ipv4/netfilter/ip_conntrack_count", "5\n")
	f.file("sys/net/ipv4/netfilter/ip_conntrack_udp_timeout", "30\n")
	if diff := cmp.Diff(map[string]int{udp: 30}, f.values()); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
	k := f.keeper()
	f.apply(k, map[string]int{udp: 10}, "udp_timeout 30 -> 10")
	text, err := os.ReadFile(filepath.Join(f.proc, "sys/net/ipv4/netfilter/ip_conntrack_udp_timeout"))
	if string(text) != "10" {
		t.Errorf("the old file holds %q (%v)", text, err)
	}
	f.apply(f.keeper(), nil, "udp_timeout 10 -> 30")
}

func TestNoConntrack(t *testing.T) {
	if _, err := NewKeeper(t.TempDir(), t.TempDir()); !errors.Is(err, ErrNoConntrack) {
		t.Errorf("error %v, want ErrNoConntrack", err)
	}
}

// changed returns how many settings are not at the administrator's value because of ctguard.
func changed(k *Keeper) int { return len(k.journal.Settings) }
