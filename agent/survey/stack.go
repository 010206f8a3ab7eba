package survey

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"

	"ctguard/policy"
)

// net returns the path of a file of /proc/net for the calling thread's namespace; /proc/net itself
// is the main thread's.
func (h *Host) net(name string) string {
	return filepath.Join(h.proc, "thread-self/net", name)
}

// Arrivals returns how much new work the protocol stack has seen; see proc(5) and RFC 1213.
func (h *Host) Arrivals() (policy.Arrivals, error) {
	v4, err := os.ReadFile(h.net("snmp"))
	if err != nil {
		return policy.Arrivals{}, fmt.Errorf("read stack counters: %w", err)
	}
	c := columns(string(v4))
	// A host without IPv6 has no snmp6.
	v6, err := os.ReadFile(h.net("snmp6"))
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

// Sockets returns how many TCP sockets are in use, listening ones included.
func (h *Host) Sockets() (int, error) {
	proc, err := procfs.NewFS(filepath.Join(h.proc, "thread-self")) // this thread's namespace, as in net
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("count sockets: %w", err)
	}
	total := 0
	for _, read := range []func() (*procfs.NetSockstat, error){proc.NetSockstat, proc.NetSockstat6} {
		stat, err := read()
		if errors.Is(err, fs.ErrNotExist) { // a host without this family
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("count sockets: %w", err)
		}
		for _, p := range stat.Protocols {
			if p.Protocol == "TCP" || p.Protocol == "TCP6" {
				total += p.InUse
			}
		}
	}
	return total, nil
}
