package throwaway

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// What runs there is in another namespace each time, its error comes back, and the process stays where it was.
func TestNamespace(t *testing.T) {
	const mine, process = "/proc/thread-self/ns/net", "/proc/self/ns/net"
	link := func(path string) string {
		t.Helper()
		where, err := os.Readlink(path)
		if err != nil {
			t.Fatal(err)
		}
		return where
	}
	before, own := link(process), link(mine)
	failed := errors.New("failed")
	for range 8 { // more than there are idle threads
		var there string
		var err error
		got := Namespace(func() error {
			there, err = os.Readlink(mine)
			return failed
		})
		if errors.Is(got, unix.EPERM) && os.Getenv("CTGUARD_REQUIRE_PRIVILEGED") != "1" {
			t.Skip(got)
		}
		if !errors.Is(got, failed) || err != nil || there == before {
			t.Errorf("%v in %s (%v), want %v elsewhere than %s", got, there, err, failed, before)
		}
	}
	if after := link(process); after != before || link(mine) != own {
		t.Errorf("the process moved from %s to %s", before, after)
	}
}
