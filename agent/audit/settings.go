package audit

import (
	"fmt"
	"strings"
)

// loadAtBoot has the module there before settings are applied.
const loadAtBoot = "echo nf_conntrack > /etc/modules-load.d/conntrack.conf"

// judgeFiles compares what files set with what the kernel has.
func judgeFiles(f *Facts) (all []Finding) {
	last := make(map[string]Assignment)
	for _, a := range f.Files {
		if a.Name != "" {
			last[a.Name] = a
		} else if f.Loaded {
			all = append(all, unknown(a))
		}
	}
	for _, a := range f.Files {
		if a.Name == "" || last[a.Name] != a {
			continue
		}
		value, there := f.Settings[a.Name]
		if there && value == a.Value {
			continue
		}
		all = append(all, f.lost(a, value, there))
	}
	return all
}

// unknown is a line that this kernel can't follow.
func unknown(a Assignment) Finding {
	why := "this kernel has no such setting, so the line does nothing"
	if strings.Contains(a.Key, "ip_conntrack") {
		why = "that is the name of kernels before 2.6.20, so the line does nothing"
	}
	return Finding{ID: SettingUnknown, Severity: Warning, Title: a.Key + " does not exist", Sure: Certain,
		Evidence: fmt.Sprintf("%s, line %d", a.File, a.Line), Why: why,
		Do: []string{fmt.Sprintf("sed -i '%dd' %s", a.Line, a.File),
			"ls /proc/sys/net/netfilter  # the names of today"}}
}

// lost is a line that the kernel does not follow.
func (f *Facts) lost(a Assignment, value int, there bool) Finding {
	found := Finding{ID: SettingLost, Severity: Warning, Sure: Certain,
		Title:    fmt.Sprintf("%s should be %d and is %d", a.Name, a.Value, value),
		Evidence: fmt.Sprintf("%s, line %d", a.File, a.Line),
		Do:       []string{fmt.Sprintf("sysctl -w net.netfilter.%s=%d", a.Name, a.Value)}}
	switch {
	case !there:
		found.Title = fmt.Sprintf("%s should be %d and is not there", a.Name, a.Value)
		found.Why = "connection tracking is not loaded: when it is, it begins with the kernel's values"
		found.Do = []string{loadAtBoot, "modprobe nf_conntrack", "sysctl --system"}
	case f.engaged():
		found.Severity, found.Sure, found.Do = Info, Guess, nil
		found.Why = fmt.Sprintf("ctguard is at level %d and may have changed it for now", f.Daemon.Level)
	case f.Shared:
		found.Severity = Info
		found.Why = "files are applied in the initial network namespace; every other one begins with the kernel's values"
	case f.Module.Loadable && !f.Module.AtBoot:
		found.Why = "the module nf_conntrack was not loaded yet when the file was applied"
		found.Do = append([]string{loadAtBoot}, found.Do...)
	default:
		found.Why = "somebody wrote it afterwards, or the file was never applied"
	}
	return found
}

// judgeModule looks for settings that come before their module at boot.
func judgeModule(f *Facts) []Finding {
	if !f.Module.Loadable || f.Module.AtBoot || f.Shared {
		return nil
	}
	for _, a := range f.Files {
		if a.Name == "" {
			continue
		}
		return []Finding{{ID: ModuleLate, Severity: Warning, Title: "settings come before their module at boot", Sure: Likely,
			Evidence: fmt.Sprintf("%s sets %s, and no file of modules-load.d names nf_conntrack", a.File, a.Name),
			Why: "the module is loaded when a rule first needs it, after the settings were applied: it begins with the " +
				"kernel's values",
			Do: []string{loadAtBoot}}}
	}
	return nil
}

// judgeSaved looks for ctguard's table in files that are loaded at boot.
func judgeSaved(f *Facts) (all []Finding) {
	for _, s := range f.Saved {
		all = append(all, Finding{ID: SavedRuleset, Severity: Warning, Sure: Certain,
			Title:    "a saved ruleset contains the table of ctguard",
			Evidence: fmt.Sprintf("%s, lines %d to %d", s.File, s.First, s.Last),
			Why: "somebody saved the ruleset while ctguard was at work. The file does not load while ctguard has its table, " +
				"and without ctguard it brings back limits that nobody takes away",
			Do: []string{fmt.Sprintf("sed -i '%d,%dd' %s", s.First, s.Last, s.File)}})
	}
	return all
}
