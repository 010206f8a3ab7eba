package survey

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/config"
	"ctguard/agent/conntrack/conntracktest"
	"ctguard/policy"
)

// tcpPorts returns the TCP selectors of ports, each with its owner.
func tcpPorts(found map[policy.Selector]uint32, owner uint32, ports ...uint16) {
	for _, port := range ports {
		found[policy.Selector{Protocol: policy.TCP, Port: port}] = owner
	}
}

// However many ports one user opens, wherever, those of root and of everybody else stay.
func TestFirstServices(t *testing.T) {
	const www, postgres, stranger = 33, 100, 1000
	found := make(map[policy.Selector]uint32)
	tcpPorts(found, 0, 22, 8443, 60000)
	tcpPorts(found, www, 443, 8080, 50000)
	tcpPorts(found, postgres, 5432)
	found[policy.Selector{Protocol: policy.UDP, Port: 53}] = 0
	honest := len(found)
	for port := uint16(1024); port < 5000; port++ {
		tcpPorts(found, stranger, port)
	}
	const most = 20
	got, err := firstServices(found, most)
	if !errors.Is(err, ErrManyServices) || len(got) != most || !slices.IsSortedFunc(got, byProtocol) {
		t.Errorf("%d services in order %t, error %v", len(got), slices.IsSortedFunc(got, byProtocol), err)
	}
	kept := 0
	for one, owner := range found {
		if owner != stranger && slices.Contains(got, one) {
			kept++
		}
	}
	if kept != honest {
		t.Errorf("%d of the %d others' services are kept: %v", kept, honest, got)
	}
	again, _ := firstServices(found, most)
	if !slices.Equal(got, again) {
		t.Error("not the same each time")
	}
	if all, err := firstServices(found, len(found)); err != nil || len(all) != len(found) {
		t.Errorf("of as many as may be %d of %d, %v", len(all), len(found), err)
	}
}

// A user who listens on more ports than the bound makes neither more selectors nor more listeners than that, and one
// line says so.
func TestManyListeners(t *testing.T) {
	conntracktest.Own(t)
	listen(t, "tcp4", ":443")
	for port := uint16(2000); port < 2600; port++ {
		listenAs(t, 1000, port)
	}
	listen(t, "tcp4", ":8443")
	c, err := config.Parse("test.toml", nil)
	if err != nil {
		t.Fatal(err)
	}
	s := NewSurveyor(New("/"), c, nil)
	f := s.Survey()
	if n := len(f.Services); n != mostServices+2 {
		t.Errorf("%d services, want %d", n, mostServices+2)
	}
	if n := len(f.Listeners); n > mostServices {
		t.Errorf("%d listeners, want at most %d", n, mostServices)
	}
	for _, port := range []uint16{443, 8443} {
		if one := (policy.Selector{Protocol: policy.TCP, Port: port}); !slices.Contains(f.Services, one) {
			t.Errorf("%s is not among the services", one)
		}
	}
	told := 0
	for _, fault := range f.Faults {
		if errors.Is(fault, ErrManyServices) {
			told++
		}
	}
	if told != 1 {
		t.Errorf("told %d times: %v", told, f.Faults)
	}
}

// listenAs listens on a TCP port as a user until the test ends.
func listenAs(t *testing.T, uid int, port uint16) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	socket := os.NewFile(uintptr(fd), "socket")
	t.Cleanup(func() { socket.Close() })
	if err := errors.Join(unix.Fchown(fd, uid, uid), unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)}),
		unix.Listen(fd, 1)); err != nil {
		t.Fatal(err)
	}
}

// However many management connections there are, so many are followed, few from one address, and those that have
// logged in stay.
func TestManyManagementConnections(t *testing.T) {
	conntracktest.Own(t)
	run(t, "ip link set lo up")
	listen(t, "tcp4", "127.0.0.1:2222")
	h := New("/")
	first := dialFrom(t, "127.0.0.9", "127.0.0.1:2222")
	seen := make(map[Connection]time.Time)
	list, err := h.managing(2222, seen)
	if err != nil || len(list) != 1 || list[0].Remote.String() != first.LocalAddr().String() {
		t.Fatalf("connections %v, %v", list, err)
	}
	seen[list[0]] = time.Now()
	for range 3 * mostFrom {
		dialFrom(t, "127.0.0.9", "127.0.0.1:2222")
		dialFrom(t, "127.0.0.8", "127.0.0.1:2222")
	}
	again, err := h.managing(2222, seen)
	if err != nil {
		t.Fatal(err)
	}
	from := make(map[netip.Addr]int)
	for _, c := range again {
		from[c.Remote.Addr()]++
	}
	if !slices.Contains(again, list[0]) {
		t.Error("the one that was seen before is gone")
	}
	if n := from[netip.MustParseAddr("127.0.0.8")]; n != mostFrom {
		t.Errorf("%d are followed from one address, want %d", n, mostFrom)
	}
}

// dialFrom connects from an address.
func dialFrom(t *testing.T, from, to string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, FallbackDelay: -1}
	c, err := d.Dial("tcp4", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
