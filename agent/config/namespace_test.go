package config

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// However a namespace is written, it is one, and its name is safe in a file name.
func TestParseNamespace(t *testing.T) {
	for text, want := range map[string]Namespace{
		"host":                     {},
		"blue":                     {"blue", "/run/netns/blue"},
		"/run/netns/blue":          {"blue", "/run/netns/blue"},
		"/var/run/netns//blue":     {"blue", "/run/netns/blue"},
		"/run/netns/host":          {"host", "/run/netns/host"},
		"/proc/7/ns/net":           {"proc-7-ns-net", "/proc/7/ns/net"},
		"/run/netns/../netns/blue": {"blue", "/run/netns/blue"},
	} {
		got, err := ParseNamespace(text)
		if err != nil || got != want {
			t.Errorf("%s is %+v (%v), want %+v", text, got, err, want)
		}
		if again, err := ParseNamespace(got.String()); err != nil || again != got {
			t.Errorf("%s is written %s, which is %+v (%v)", text, got, again, err)
		}
	}
	for _, text := range []string{"", ".", "..", "a/b", "a\x00b"} {
		if got, err := ParseNamespace(text); err == nil {
			t.Errorf("%q was taken for %+v", text, got)
		}
	}
}

// Each namespace has a socket, a state directory and a capacity of its own, also after a reload.
func TestNamespacesShareNothing(t *testing.T) {
	const text = "namespaces = [\"host\", \"blue\", \"red\"]\n[table]\ncapacity = 500\n" +
		"[capacities]\nblue = 200\n[metrics]\nlisten = \"127.0.0.1:9479\"\n"
	all := parse(t, text)
	host := all.In(all.Namespaces[0])
	if host.Socket != all.Socket || host.StateDir != all.StateDir || host.Capacity != 500 || host.Metrics == "" {
		t.Errorf("the host has %+v", host)
	}
	blue, red := all.In(all.Namespaces[1]), all.In(all.Namespaces[2])
	if blue.Capacity != 200 || red.Capacity != 500 || blue.Metrics+red.Metrics != "" {
		t.Errorf("blue has %d and %q, red %d and %q", blue.Capacity, blue.Metrics, red.Capacity, red.Metrics)
	}
	if blue.Socket != "/run/ctguard/ctguard-blue.sock" || blue.StateDir != "/var/lib/ctguard/netns/blue" {
		t.Errorf("blue has %s and %s", blue.Socket, blue.StateDir)
	}

	blue.Path = filepath.Join(t.TempDir(), "ctguard.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(blue.Path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(text + "[evict]\nfloor = 20")
	if c, err := blue.Reload(); err != nil || c.Capacity != 200 || c.Socket != blue.Socket || c.Policy.Floor != 20 {
		t.Errorf("reloaded: %+v, %v", c, err)
	}
	write("namespaces = [\"blue\"]")
	if _, err := blue.Reload(); !errors.Is(err, ErrOtherNamespaces) {
		t.Errorf("other namespaces were taken: %v", err)
	}
}
