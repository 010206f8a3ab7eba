package audit

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// mostOfFile bounds what is read of a file.
const mostOfFile = 4 << 20

// sysctlDirs are where drop-ins are, the first has precedence: sysctl.d(5).
var sysctlDirs = []string{"etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d", "lib/sysctl.d"}

// files reads what is configured for the next boot.
func (r Reader) files(f *Facts) {
	for _, name := range r.sysctlFiles() {
		text, err := r.read(name)
		f.note(err)
		f.Files = append(f.Files, r.assignments(name, text, f)...)
	}
	_, err := os.Stat(r.path("sys/module/nf_conntrack/initstate"))
	f.Module.Loadable = err == nil || !r.exists("sys/module/nf_conntrack")
	f.Module.AtBoot = r.loadsAtBoot()
	f.Saved = r.saved(f)
}

// sysctlFiles returns the files with settings in the order in which they are applied.
func (r Reader) sysctlFiles() (names []string) {
	chosen := make(map[string]string)
	for _, dir := range sysctlDirs {
		paths, _ := filepath.Glob(r.path(filepath.Join(dir, "*.conf")))
		for _, path := range paths {
			base := filepath.Base(path)
			chosen[base] = cmp.Or(chosen[base], filepath.Join(dir, base))
		}
	}
	for _, base := range slices.Sorted(maps.Keys(chosen)) {
		names = append(names, chosen[base])
	}
	// sysctl --system reads it last; Debian's 99-sysctl.conf is a link to it.
	names = append(names, "etc/sysctl.conf")
	if text, _ := r.read("etc/ufw/ufw.conf"); regexp.MustCompile(`(?mi)^ENABLED=yes`).MatchString(text) {
		names = append(names, "etc/ufw/sysctl.conf")
	}
	return slices.DeleteFunc(names, func(name string) bool {
		target, err := filepath.EvalSymlinks(r.path(name))
		main, _ := filepath.EvalSymlinks(r.path("etc/sysctl.conf"))
		return err == nil && target == main && name != "etc/sysctl.conf"
	})
}

// assignments returns the lines of a file that are about connection tracking.
func (r Reader) assignments(name, text string, f *Facts) (list []Assignment) {
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		key, value, _ := strings.Cut(strings.TrimPrefix(line, "-"), "=")
		key = strings.TrimSpace(key)
		n, err := strconv.Atoi(strings.TrimSpace(value))
		if err != nil || !strings.Contains(key, "conntrack_") || strings.ContainsAny(key, "*?[") {
			continue
		}
		list = append(list, Assignment{File: "/" + name, Line: number, Key: key, Name: r.settingName(key, f), Value: n})
	}
	return list
}

// settingName returns what a key of a file is called here; empty where this kernel has no such setting. Without
// the module nothing is there, and names of today are taken for right.
func (r Reader) settingName(key string, f *Facts) string {
	path := key
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
		path = strings.ReplaceAll(key, ".", "/")
	}
	name := filepath.Base(path)
	if old, ok := strings.CutPrefix(name, "ip_conntrack_"); ok {
		if !r.exists(filepath.Join("proc/sys", path)) {
			return ""
		}
		return "nf_conntrack_" + old
	}
	_, there := f.Settings[name]
	known := filepath.Dir(path) == "net/netfilter" || path == "net/nf_conntrack_max"
	if !strings.HasPrefix(name, "nf_conntrack_") || !known || f.Loaded && !there {
		return ""
	}
	return name
}

// loadsAtBoot says whether a file of modules-load.d(5), or Debian's /etc/modules, names the module.
func (r Reader) loadsAtBoot() bool {
	names := []string{r.path("etc/modules")}
	for _, dir := range []string{"etc", "run", "usr/local/lib", "usr/lib", "lib"} {
		paths, _ := filepath.Glob(r.path(filepath.Join(dir, "modules-load.d/*.conf")))
		names = append(names, paths...)
	}
	return slices.ContainsFunc(names, func(path string) bool {
		text, err := os.ReadFile(path)
		return err == nil && regexp.MustCompile(`(?m)^\s*nf_conntrack(_\w+)?\s*$`).Match(text)
	})
}

// ownTable is how ctguard's table begins in a saved ruleset.
var ownTable = regexp.MustCompile(`^\s*table\s+inet\s+ctguard\s*\{`)

// saved looks for ctguard's table in the files that are loaded at boot.
func (r Reader) saved(f *Facts) (list []SavedTable) {
	names := []string{"etc/nftables.conf", "etc/sysconfig/nftables.conf"}
	for _, pattern := range []string{"etc/nftables.d/*", "etc/nftables/*"} {
		paths, _ := filepath.Glob(r.path(pattern))
		for _, path := range paths {
			if name, err := filepath.Rel(r.path("/"), path); err == nil {
				names = append(names, name)
			}
		}
	}
	for _, name := range names {
		text, err := r.read(name)
		f.note(err)
		list = append(list, savedTables("/"+name, text)...)
	}
	return list
}

// savedTables finds ctguard's table in a ruleset: from its first line to where its braces are closed.
func savedTables(name, text string) (list []SavedTable) {
	depth, first := 0, 0
	for i, line := range slices.Collect(strings.Lines(text)) {
		if first == 0 && ownTable.MatchString(line) {
			first, depth = i+1, 0
		}
		if first == 0 {
			continue
		}
		depth += strings.Count(line, "{") - strings.Count(line, "}")
		if depth <= 0 {
			list = append(list, SavedTable{name, first, i + 1})
			first = 0
		}
	}
	return list
}

// read returns a file's text; none where it isn't there or is no file.
func (r Reader) read(name string) (string, error) {
	info, err := os.Stat(r.path(name))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	file, err := os.Open(r.path(name))
	if err != nil {
		return "", err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, mostOfFile))
	if err == nil && len(text) == mostOfFile {
		err = limitOf(name, mostOfFile)
	}
	return string(text), err
}

func (r Reader) exists(name string) bool {
	_, err := os.Stat(r.path(name))
	return err == nil
}
