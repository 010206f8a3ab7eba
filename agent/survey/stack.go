package survey

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"ctguard/agent/procfile"
	"ctguard/policy"
)

// net returns the path of a file of /proc/net for the calling thread's namespace; /proc/net itself
// is the main thread's.
func (h *Host) net(name string) string {
	return filepath.Join(h.proc, "thread-self/net", name)
}

// Arrivals returns how much new work the protocol stack has seen; see proc(5) and RFC 1213.
func (h *Host) Arrivals() (policy.Arrivals, error) {
	v4, err := procfile.Read(h.net("snmp"))
	if err != nil {
		return policy.Arrivals{}, fmt.Errorf("read stack counters: %w", err)
	}
	c := columns(string(v4))
	// A host without IPv6 has no snmp6.
	v6, err := procfile.Read(h.net("snmp6"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return policy.Arrivals{}, fmt.Errorf("read stack counters: %w", err)
	}
	for line := range strings.Lines(string(v6)) { // a hundred, of which four matter
		if !strings.HasPrefix(line, "Udp6") && !strings.HasPrefix(line, "Icmp6InEchos") {
			continue
		}
		if f := strings.Fields(line); len(f) == 2 {
			c[f[0]], _ = strconv.ParseUint(f[1], 10, 64)
		}
	}
	return policy.Arrivals{
		TCPOpens: c["TcpPassiveOpens"],
		UDPDatagrams: c["UdpInDatagrams"] + c["UdpNoPorts"] + c["UdpInErrors"] +
			c["Udp6InDatagrams"] + c["Udp6NoPorts"] + c["Udp6InErrors"],
		Echoes: c["IcmpInEchos"] + c["Icmp6InEchos"],
	}, nil
}

// counted are the lines that matter.
var counted = []string{"Tcp:", "Udp:", "Icmp:"}

// columns reads those pairs of lines of /proc/net/snmp that matter ("Tcp: Name Name", "Tcp: 1 2") into one map
// with names such as TcpPassiveOpens.
func columns(text string) map[string]uint64 {
	counters := make(map[string]uint64)
	lines := strings.Split(text, "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		if !slices.ContainsFunc(counted, func(p string) bool { return strings.HasPrefix(lines[i], p) }) {
			continue
		}
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		if len(names) == 0 || len(names) != len(values) || names[0] != values[0] {
			continue
		}
		for k := 1; k < len(names); k++ {
			// Negative values (Tcp MaxConn) are no counters.
			counters[strings.TrimSuffix(names[0], ":")+names[k]], _ = strconv.ParseUint(values[k], 10, 64)
		}
	}
	return counters
}

// Sockets returns how many TCP sockets are in use, listening ones included: "TCP: inuse 5 orphan 0 ..." in sockstat and
// sockstat6, see net/ipv4/proc.c and net/ipv6/proc.c. A host without a family lacks its file.
func (h *Host) Sockets() (total int, err error) {
	for _, file := range []string{"sockstat", "sockstat6"} {
		text, err := procfile.Read(h.net(file))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, fmt.Errorf("count sockets: %w", err)
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) < 3 || f[0] != "TCP:" && f[0] != "TCP6:" || f[1] != "inuse" {
				continue
			}
			inUse, err := strconv.Atoi(f[2])
			if err != nil {
				return 0, fmt.Errorf("count sockets: %w", err)
			}
			total += inUse
		}
	}
	return total, nil
}
