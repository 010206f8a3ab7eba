package nft

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestProbe fails on a kernel that should have everything and does not: every kernel that tests run
// on is newer than the newest capability.
func TestProbe(t *testing.T) {
	inNewNetNS(t)
	before := run(t, "nft list ruleset")
	got, err := Probe()
	if err != nil {
		t.Fatal(err)
	}
	want := Capabilities{Rules: true, Owner: true, Reject: true, Socket: true, Synproxy: true, Forward: true,
		Cookies: true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("capabilities (-want +got):\n%s", diff)
	}
	if after := run(t, "nft list ruleset"); after != before {
		t.Errorf("the probe left in the caller's namespace:\n%s", after)
	}
}
