package sysctl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"ctguard/agent/procfile"
)

// ErrNoConntrack says that this kernel, or this namespace, has no conntrack settings.
var ErrNoConntrack = errors.New("no connection tracking in this kernel: " +
	"/proc/sys/net/netfilter/nf_conntrack_max is missing")

// Timestamps is the one setting here that is not conntrack's: net.ipv4.tcp_timestamps, which synproxy
// depends on.
const Timestamps = "tcp_timestamps"

// buckets is the size of the hash table. Where it can only be read, it is written as a parameter of the module.
const buckets = "nf_conntrack_buckets"

// Settings finds the conntrack settings below a proc root.
type Settings struct {
	net      string // PROC/sys/net
	hashSize string // SYS/module/nf_conntrack/parameters/hashsize
}

// NewSettings returns the settings below proc, which is "/proc" except in tests. It returns
// [ErrNoConntrack] where there are none.
func NewSettings(proc string) (*Settings, error) {
	hashSize := filepath.Join(filepath.Dir(proc), "sys/module/nf_conntrack/parameters/hashsize")
	s := &Settings{filepath.Join(proc, "sys/net"), hashSize}
	if _, err := os.Stat(s.path("nf_conntrack_max")); err != nil {
		return nil, fmt.Errorf("%w (modprobe nf_conntrack)", ErrNoConntrack)
	}
	return s, nil
}

// path returns where the setting called name lives: net.netfilter.NAME, or what kernels before
// 2.6.20 called it, net.ipv4.netfilter.ip_conntrack_*, where only that exists.
func (s *Settings) path(name string) string {
	if name == Timestamps {
		return filepath.Join(s.net, "ipv4", name)
	}
	path := filepath.Join(s.net, "netfilter", name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	old := filepath.Join(s.net, "ipv4/netfilter", "ip"+strings.TrimPrefix(name, "nf"))
	if _, err := os.Stat(old); err == nil {
		return old
	}
	return path
}

// Read returns one setting's value.
func (s *Settings) Read(name string) (int, error) {
	text, err := procfile.Read(s.path(name))
	if err != nil {
		return 0, fmt.Errorf("read setting: %w", err)
	}
	value, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("read setting %s: %w", name, err)
	}
	return value, nil
}

// All returns every conntrack setting of the namespace that holds one number, and [Timestamps], by name.
func (s *Settings) All() (map[string]int, error) {
	files, err := os.ReadDir(filepath.Dir(s.path("nf_conntrack_max")))
	if err != nil {
		return nil, fmt.Errorf("list settings: %w", err)
	}
	all := make(map[string]int, len(files))
	for _, f := range files {
		name := f.Name()
		if old, ok := strings.CutPrefix(name, "ip_conntrack_"); ok {
			name = "nf_conntrack_" + old
		}
		if !strings.HasPrefix(name, "nf_conntrack_") || name == "nf_conntrack_count" {
			continue
		}
		if value, err := s.Read(name); err == nil {
			all[name] = value
		}
	}
	if value, err := s.Read(Timestamps); err == nil {
		all[Timestamps] = value
	}
	return all, nil
}

// asKept is what the kernel makes of a value. It rounds the buckets up to whole pages, of which each bucket takes a
// pointer: what is read later must not look like somebody else's. Half of a 64-bit kernel's pointer is a 32-bit one's.
func asKept(name string, value int) int {
	if name != buckets {
		return value
	}
	page := os.Getpagesize() / 4
	return (value + page - 1) / page * page
}

// writable returns the file through which the setting called name is changed.
func (s *Settings) writable(name string) string {
	path := s.path(name)
	if info, err := os.Stat(path); name == buckets && (err != nil || info.Mode()&0o200 == 0) {
		return s.hashSize
	}
	return path
}

// write changes one setting.
func (s *Settings) write(name string, value int) error {
	f, err := os.OpenFile(s.writable(name), os.O_WRONLY|os.O_TRUNC, 0) // as echo(1) does; /proc doesn't mind
	if err != nil {
		return fmt.Errorf("write setting: %w", err)
	}
	_, err = f.WriteString(strconv.Itoa(value))
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write setting %s=%d: %w", name, value, err)
	}
	return nil
}

// exists reports whether this kernel has the setting.
func (s *Settings) exists(name string) bool {
	_, err := os.Stat(s.path(name))
	return !errors.Is(err, fs.ErrNotExist)
}

// Try writes another value of a setting that is 0 or 1, and puts it back: for a namespace that nobody is in. One that
// is not there can't be refused either.
func (s *Settings) Try(name string) error {
	before, err := s.Read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = errors.Join(s.write(name, 1-before), s.write(name, before))
	}
	return err
}
