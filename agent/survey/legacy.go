package survey

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"ctguard/agent/procfile"
)

// tablesInUse are the tables of iptables-legacy in this namespace, by the file of /proc/net that lists them. Such rules
// are invisible to nftables.
type tablesInUse map[string][]string

// tablesInUse reads which tables are in use; a file that isn't there lists none.
func (h *Host) tablesInUse() tablesInUse {
	inUse := make(tablesInUse, 2)
	for _, v := range []legacyVersion{legacyIPv4, legacyIPv6} {
		inUse[v.file] = h.lines(v.file)
	}
	return inUse
}

// file names the file that lists a table, or nothing.
func (t tablesInUse) file(table string) string {
	for _, v := range []legacyVersion{legacyIPv4, legacyIPv6} {
		if slices.Contains(t[v.file], table) {
			return v.file
		}
	}
	return ""
}

// lines returns the lines of a file of /proc/net; one that isn't there has none.
func (h *Host) lines(file string) []string {
	text, err := procfile.Read(h.net(file))
	if err != nil {
		return nil
	}
	return strings.Split(string(text), "\n")
}

// legacyTables are the tables of iptables-legacy other than nat, whose mere presence counts.
var legacyTables = []string{"raw", "mangle", "filter", "security"}

// needs says what the rules of iptables-legacy do with connections other than matching their state. Which packets
// come to a rule is not followed: each counts for everything. Nobody tells of changes, so the tables are read each
// time; where they are not in use they are not even asked for, which would make them.
func (t tablesInUse) needs() []effect {
	var all []effect
	for _, v := range []legacyVersion{legacyIPv4, legacyIPv6} {
		for _, table := range legacyTables {
			if !slices.Contains(t[v.file], table) {
				continue
			}
			c := chain{}
			where := "table " + table + " of iptables-legacy"
			err := v.read(table, &c, nil)
			for range attempts {
				if !errors.Is(err, unix.EAGAIN) { // the rules changed meanwhile
					break
				}
				c = chain{}
				err = v.read(table, &c, nil)
			}
			if err != nil {
				c.effects = append(c.effects, effect{kind: unknown})
			}
			for _, e := range c.effects {
				if e.kind == translates || e.kind == proxies || e.kind == marks && !e.byConnection ||
					e.kind == judgesNew || e.kind == refusesNew || e.kind == admitsNew { // of which the verdicts are not read
					continue
				}
				all = append(all, effect{kind: e.kind, everything: true, where: where})
			}
		}
	}
	return distinct(sorted(all).needs)
}

// LegacyChains returns the names of the chains that somebody made in iptables-legacy. Tables that can't be read have
// none.
func (h *Host) LegacyChains() (names []string) {
	inUse := h.tablesInUse()
	for _, v := range []legacyVersion{legacyIPv4, legacyIPv6} {
		for _, table := range append([]string{"nat"}, legacyTables...) {
			if slices.Contains(inUse[v.file], table) {
				c := chain{}
				_ = v.read(table, &c, func(name string) { names = append(names, name) })
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// legacyVersion is where the two versions of iptables-legacy differ: struct ipt_entry and struct ip6t_entry in
// include/uapi/linux/netfilter_ipv4/ip_tables.h and netfilter_ipv6/ip6_tables.h.
type legacyVersion struct {
	file          string // of /proc/net, which lists the tables in use
	family, level int
	offsets       int // where an entry says how far its target and the next entry are
	matches       int // where its matches begin
}

var (
	legacyIPv4 = legacyVersion{"ip_tables_names", unix.AF_INET, unix.SOL_IP, 88, 112}
	legacyIPv6 = legacyVersion{"ip6_tables_names", unix.AF_INET6, unix.SOL_IPV6, 140, 168}
)

// read adds what the rules of a table do to c, and calls begins, if there is one, for each chain that somebody made.
func (v legacyVersion) read(table string, c *chain, begins func(name string)) error {
	const (
		getInfo, getEntries    = 64, 65 // IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES; those of IPv6 are the same
		nameSize, infoSize     = 32, 84
		sizeAt                 = 80 // in struct ipt_getinfo
		entriesAt              = 40 // in struct ipt_get_entries
		mostBytes              = 1 << 26
		extensionAt, nameBytes = 32, 29 // in struct xt_entry_match and xt_entry_target
	)
	fd, err := unix.Socket(v.family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	info := make([]byte, infoSize)
	copy(info[:nameSize-1], table)
	if err := getsockopt(fd, v.level, getInfo, info); err != nil {
		return err
	}
	size := binary.NativeEndian.Uint32(info[sizeAt:])
	if size > mostBytes {
		return errors.New("too many rules")
	}
	b := make([]byte, entriesAt+int(size))
	copy(b[:nameSize-1], table)
	binary.NativeEndian.PutUint32(b[nameSize:], size)
	if err := getsockopt(fd, v.level, getEntries, b); err != nil {
		return err
	}
	for b = b[entriesAt:]; len(b) > v.matches; {
		target, next := int(binary.NativeEndian.Uint16(b[v.offsets:])), int(binary.NativeEndian.Uint16(b[v.offsets+2:]))
		if target < v.matches || next < target+extensionAt || next > len(b) {
			return errors.New("a rule is cut off")
		}
		m := reader{into: c, ipv4: v.family == unix.AF_INET}
		for at := v.matches; at < target; {
			length := int(binary.NativeEndian.Uint16(b[at:]))
			if length < extensionAt || at+length > target {
				return errors.New("a match is cut off")
			}
			m.match(legacyName(b[at+2:at+2+nameBytes]), uint32(b[at+2+nameBytes]), b[at+extensionAt:at+length])
			at += length
		}
		// A target without a name is a verdict or a jump; ERROR begins a chain and ends the table.
		name := legacyName(b[target+2 : target+2+nameBytes])
		switch {
		case name == "ERROR" && begins != nil && next < len(b): // struct xt_error_target has the chain's name
			begins(legacyName(b[target+extensionAt : next]))
		case name != "" && name != "ERROR":
			m.target(name, uint32(b[target+2+nameBytes]), b[target+extensionAt:next])
		}
		b = b[next:]
	}
	return nil
}

// legacyName is a name in a field that is longer.
func legacyName(b []byte) string {
	name, _, _ := strings.Cut(string(b), "\x00")
	return name
}

// getsockopt has the kernel read and write a buffer.
func getsockopt(fd, level, option int, b []byte) error {
	length := uint32(len(b))
	_, _, code := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(unsafe.Pointer(&length)), 0)
	if code != 0 {
		return code
	}
	return nil
}
