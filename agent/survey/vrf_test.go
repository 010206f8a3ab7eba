package survey

import (
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntracktest"
)

// A service that may be asked at an address which the routing table "local" does not have, as in a VRF, stays tracked
// and without synproxy: rules do not know its questions. Here the address is taken out of that table.
func TestHiddenServices(t *testing.T) {
	enterPair(t)
	here := conntracktest.Here4.String()
	listen(t, "tcp", ":80")
	listenSet(t, ":443", func(fd int) error { return unix.BindToDevice(fd, "here0") })
	all := selectors(t, "tcp/80, tcp/443, tcp/400-500, udp/53, tcp, all, echo, multicast")
	want := func(name, accept string, want ...string) {
		t.Helper()
		h, _ := fixture(t, map[string]string{"proc/sys/net/ipv4/tcp_l3mdev_accept": accept,
			"proc/sys/net/ipv4/udp_l3mdev_accept": "0\n"})
		refused, err := h.Refused(all)
		if err != nil {
			t.Fatal(err)
		}
		expected := make(map[string]string)
		for _, s := range want {
			expected[s] = inVRF(conntracktest.Here4)
		}
		got := make(map[string]string)
		for s, reason := range refused {
			got[s.String()] = reason
		}
		if diff := cmp.Diff(expected, got); diff != "" {
			t.Errorf("%s: refused (-want +got):\n%s", name, diff)
		}
		hidden := h.hiddenServices()
		for s := range maps.Keys(refused) {
			if hidden(s) == "" {
				t.Errorf("%s: synproxy may stand before %s", name, s)
			}
		}
	}
	want("all is local", "1\n")
	run(t, "ip route delete local "+here+" dev here0 table local")
	want("a socket of a device", "0\n", "tcp/443", "tcp/400-500", "tcp", "all", "echo")
	want("sockets serve every VRF", "1\n", "tcp/80", "tcp/443", "tcp/400-500", "tcp", "all", "echo")
	run(t, "ip link set here0 down")
	want("nobody is asked there", "1\n")
}
