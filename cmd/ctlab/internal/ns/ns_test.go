package ns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"ctguard/agent/conntrack/conntracktest"
)

func newNamespace(t *testing.T, name string) *Namespace {
	t.Helper()
	conntracktest.Privileged(t)
	n, err := New(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

func TestDoRunsInside(t *testing.T) {
	n := newNamespace(t, "a")
	outside, err := Current()
	if err != nil {
		t.Fatal(err)
	}
	var inside string
	err = n.Do(func() (err error) {
		inside, err = Current()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if inside == outside || inside != n.ID() {
		t.Errorf("ran in %s, the namespace is %s, outside is %s", inside, n.ID(), outside)
	}
	if now, _ := Current(); now != outside {
		t.Errorf("the caller was moved to %s", now)
	}
}

func TestCloseEndsProcesses(t *testing.T) {
	n := newNamespace(t, "a")
	cmd := exec.Command("sleep", "600")
	if err := n.Start(cmd); err != nil {
		t.Fatal(err)
	}
	space, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	if err != nil || space != n.ID() {
		t.Errorf("the process is in %s (%v), want %s", space, err, n.ID())
	}
	n.Close()
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the process ended with %v, want killed", err)
	}
	if err := n.Do(func() error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("error is %v, want closed", err)
	}
}

// Two namespaces talk over their pair, in both families, at once: no waiting for
// duplicate address detection.
func TestPairConnects(t *testing.T) {
	a, b := newNamespace(t, "a"), newNamespace(t, "b")
	err := Pair(
		End{NS: a, Name: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Addrs: []netip.Prefix{
			netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64"),
		}},
		End{NS: b, Name: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, Addrs: []netip.Prefix{
			netip.MustParsePrefix("192.0.2.2/24"), netip.MustParsePrefix("2001:db8::2/64"),
		}},
	)
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{"192.0.2.1:0", "[2001:db8::1]:0"} {
		var l net.Listener
		err := a.Do(func() (err error) {
			l, err = net.Listen("tcp", addr)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		err = b.Do(func() error {
			c, err := net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
			if err != nil {
				return err
			}
			return c.Close()
		})
		if err != nil {
			t.Errorf("connect to %s: %v", l.Addr(), err)
		}
		_ = l.Close()
	}
}

func TestSysctlStaysInside(t *testing.T) {
	n := newNamespace(t, "a")
	const path = "/proc/sys/net/ipv4/ip_forward"
	outside, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Sysctl(map[string]string{"net.ipv4.ip_forward": "1"}); err != nil {
		t.Fatal(err)
	}
	var inside []byte
	err = n.Do(func() (err error) {
		inside, err = os.ReadFile(path)
		return err
	})
	if err != nil || string(inside) != "1\n" {
		t.Errorf("inside it is %q (%v), want 1", inside, err)
	}
	if now, _ := os.ReadFile(path); string(now) != string(outside) {
		t.Errorf("outside it became %q", now)
	}
}
