package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// namedNamespaces is where ip-netns(8) keeps the namespaces that it names.
const namedNamespaces = "/run/netns"

// Namespace is a network namespace as an operator names it. The zero value is the one that ctguard was
// started in, whose name is "host".
type Namespace struct {
	Name string // safe as a part of a file name; empty for the host
	Path string // the file that is the namespace; empty for the host
}

// String returns what [ParseNamespace] reads as n.
func (n Namespace) String() string {
	switch {
	case n.IsHost():
		return "host"
	case n.Name != "host" && n.Path == filepath.Join(namedNamespaces, n.Name):
		return n.Name
	}
	return n.Path
}

// IsHost reports whether n is the namespace that ctguard was started in.
func (n Namespace) IsHost() bool { return n.Path == "" }

// ParseNamespace reads "host", a name that ip-netns(8) has made, or the absolute path of a namespace.
func ParseNamespace(text string) (Namespace, error) {
	if text == "host" {
		return Namespace{}, nil
	}
	if text == "" || text == "." || text == ".." || strings.ContainsRune(text, 0) {
		return Namespace{}, fmt.Errorf("%q is no name of a network namespace", text)
	}
	path := filepath.Join(namedNamespaces, text)
	if strings.Contains(text, "/") {
		if path = filepath.Clean(text); !filepath.IsAbs(path) {
			return Namespace{}, fmt.Errorf("%q is neither a name nor an absolute path: write %q or %q", text, "blue",
				"/proc/PID/ns/net")
		}
	}
	path = strings.Replace(path, "/var/run/", "/run/", 1) // the same on every system with ip-netns(8)
	if dir, name := filepath.Split(path); filepath.Clean(dir) == namedNamespaces {
		return Namespace{name, path}, nil
	}
	return Namespace{strings.ReplaceAll(strings.TrimPrefix(path, "/"), "/", "-"), path}, nil
}

// In returns the configuration of the agent that guards a namespace. Each has a socket, a state directory
// and a capacity of its own; metrics.listen is the host's.
func (c Config) In(n Namespace) Config {
	c.Namespace = n
	if own, ok := c.Capacities[n]; ok {
		c.Capacity = own
	}
	if n.IsHost() {
		return c
	}
	end := filepath.Ext(c.Socket)
	c.Socket = strings.TrimSuffix(c.Socket, end) + "-" + n.Name + end
	c.StateDir = filepath.Join(c.StateDir, "netns", n.Name)
	c.Metrics = ""
	return c
}

// Faults of a file that can't be taken while an agent runs.
var (
	ErrOtherNamespaces = errors.New("namespaces change only with a restart")
	ErrNeedsRestart    = errors.New("socket, group, state_dir, metrics and notify change only with a restart")
)

// Reload reads the file again for the agent that runs with c, and returns its new configuration. A file
// that was there and is not now is being written anew, or lost: its allowlist must not be lost with it.
func (c Config) Reload() (Config, error) {
	next, err := Load(c.Path, c.Absent)
	next = next.In(c.Namespace)
	switch {
	case err != nil:
		return Config{}, err
	case !slices.Equal(next.Namespaces, c.Namespaces):
		return Config{}, ErrOtherNamespaces
	case next.Socket != c.Socket || next.StateDir != c.StateDir || next.Group != c.Group,
		next.Metrics != c.Metrics || next.Details != c.Details || !next.Notify.Equal(c.Notify):
		return Config{}, ErrNeedsRestart
	}
	return next, nil
}

// namespaces reads what the file says of namespaces and their capacities.
func (raw *rawConfig) namespaces(c *Config, fault func(key, format string, args ...any)) {
	for _, text := range raw.Namespaces {
		n, err := ParseNamespace(text)
		if err != nil {
			fault("namespaces", "%v", err)
			continue
		}
		if slices.ContainsFunc(c.Namespaces, func(other Namespace) bool { return other.Name == n.Name }) {
			fault("namespaces", "%q is there twice", text)
		}
		c.Namespaces = append(c.Namespaces, n)
	}
	if c.Metrics != "" && len(c.Namespaces) > 0 && !slices.ContainsFunc(c.Namespaces, Namespace.IsHost) {
		fault("metrics.listen", `only the agent of "host" serves it, which namespaces does not have; `+
			"the others serve metrics on their sockets")
	}
	for text, capacity := range raw.Capacities {
		key := "capacities." + text
		n, err := ParseNamespace(text)
		switch {
		case err != nil:
			fault(key, "%v", err)
		case !slices.Contains(c.Namespaces, n):
			fault(key, "is not in namespaces%s", listed(c.Namespaces))
		case capacity < 0:
			fault(key, "%d is below 0", capacity)
		}
		if c.Capacities == nil {
			c.Capacities = make(map[Namespace]int)
		}
		c.Capacities[n] = capacity
	}
}

// listed tells the namespaces that there are.
func listed(namespaces []Namespace) string {
	if len(namespaces) == 0 {
		return ", which is empty"
	}
	names := make([]string, len(namespaces))
	for i, n := range namespaces {
		names[i] = n.String()
	}
	return ", which has " + strings.Join(names, ", ")
}
