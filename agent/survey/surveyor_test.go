package survey

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ctguard/agent/config"
	"ctguard/agent/conntrack/conntracktest"
	"ctguard/agent/state"
	"ctguard/policy"
)

// selectorsOf reads selectors as people write them.
func selectorsOf(t *testing.T, texts ...string) (list []policy.Selector) {
	t.Helper()
	for _, text := range texts {
		s, err := policy.ParseSelector(text)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, s)
	}
	return list
}

// An operator is known by a management connection that has lasted longer than a login may take, and
// stays known when the configuration is read again.
func TestOperatorsSurviveReload(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	local, remote := netip.MustParseAddrPort(l.Addr().String()), netip.MustParseAddrPort(c.LocalAddr().String())
	here := New(t.TempDir()) // nobody of this host's own sessions
	old := NewSurveyor(here, config.Config{Ports: []uint16{local.Port()}}, nil)
	start := time.Now()
	for _, step := range []struct {
		after time.Duration
		known int
	}{{0, 0}, {loginGrace - time.Second, 0}, {loginGrace, 1}} {
		peers, err := old.operators(start.Add(step.after))
		if err != nil || len(peers) != step.known {
			t.Errorf("after %s: operators %v, %v; want %d", step.after, peers, err, step.known)
		}
	}

	if _, err := old.operators(start.Add(loginGrace)); err != nil {
		t.Fatal(err)
	}
	old.Reconfigure(config.Config{Ports: []uint16{local.Port()}})
	if peers, err := old.operators(start.Add(loginGrace)); err != nil || len(peers) != 1 {
		t.Errorf("after a reload: operators %v, %v; want 1", peers, err)
	}
	if seen := old.seen[Connection{Local: local, Remote: remote}]; !seen.Equal(start) {
		t.Errorf("seen since %s, want %s", seen, start)
	}

	// Another process knows at once who was logged in, as long as the connection is there, and nobody else.
	logins := old.Logins(start.Add(loginGrace))
	if len(logins) != 1 || logins[0].Remote != remote {
		t.Fatalf("logins %v, want that of %s", logins, remote)
	}
	elsewhere := logins[0]
	elsewhere.Remote = netip.AddrPortFrom(remote.Addr(), remote.Port()^1)
	for want, logins := range [][]state.Login{{elsewhere}, logins} {
		next := NewSurveyor(here, config.Config{Ports: []uint16{local.Port()}}, nil)
		next.RecallLogins(logins)
		if peers, err := next.operators(start.Add(loginGrace)); err != nil || len(peers) != want {
			t.Errorf("after a restart with %v: operators %v, %v; want %d", logins, peers, err, want)
		}
	}
}

// What has some of the traffic that is to stay tracked is refused, and nothing else.
func TestExcepted(t *testing.T) {
	s := Surveyor{config: config.Config{Except: selectorsOf(t, "tcp/22", "udp/53 with 192.0.2.0/24")}}
	f := Facts{Host: policy.Host{Services: selectorsOf(t, "all", "tcp on eth0", "tcp/20-29", "tcp/22 with 192.0.2.0/24",
		"tcp/80", "udp", "udp with 198.51.100.0/24", "echo"),
		Refused: map[policy.Selector]string{selectorsOf(t, "udp")[0]: "NAT"}}}
	s.excepted(&f)
	got := map[string]string{}
	for one, reason := range f.Refused {
		got[one.String()] = reason
	}
	const ssh = "notrack.except keeps tcp/22 tracked, which is part of it"
	if diff := cmp.Diff(map[string]string{"all": ssh, "tcp on eth0": ssh, "tcp/20-29": ssh, "udp": "NAT"},
		got); diff != "" {
		t.Errorf("refused (-want +got):\n%s", diff)
	}
}

// A selector without a port brings along what listens here of it.
func TestParts(t *testing.T) {
	conntracktest.Own(t)
	listener, err := net.Listen("tcp4", "0.0.0.0:8080")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	for listed, want := range map[string]string{
		"udp/53": "udp/53",
		"udp":    "udp",
		"tcp":    "tcp, tcp/8080",
		"all":    "all, tcp/8080, echo, multicast",
		"tcp on eth0,tcp with 10.0.0.0/8 at 10.1.0.0/16": "tcp on eth0, tcp with 10.0.0.0/8 at 10.1.0.0/16, " +
			"tcp/8080 on eth0, tcp/8080 with 10.0.0.0/8 at 10.1.0.0/16",
		"all,auto": "all, tcp/8080, echo, multicast",
	} {
		s := Surveyor{host: New("/"), config: config.Config{Services: strings.Split(listed, ",")}}
		found, err := s.services()
		var got []string
		for _, one := range found {
			got = append(got, one.String())
		}
		if diff := cmp.Diff(want, strings.Join(got, ", ")); diff != "" || err != nil {
			t.Errorf("%s (-want +got), error %v:\n%s", listed, err, diff)
		}
	}
}

// A management port stays tracked unless it is named, by itself or with others.
func TestManaged(t *testing.T) {
	found := selectorsOf(t, "tcp/22", "tcp/80")
	for listed, managed := range map[string]bool{"auto": true, "tcp/80": true, "tcp/22": false,
		"tcp/22 with 192.0.2.0/24": true, "tcp/20-30": false, "tcp": false, "all": false, "udp": true, "tcp on eth0": true} {
		s := Surveyor{config: config.Config{Ports: []uint16{22, 2222}, Services: []string{"auto", listed}}}
		if got := s.managed(found); len(got) > 0 != managed {
			t.Errorf("with %s listed, %v stay tracked", listed, got)
		}
	}
}

// Where rules may refuse what this host sends, UDP services stay tracked, unless the configuration names them.
func TestAnswersThatMayBeRefused(t *testing.T) {
	services := selectorsOf(t, "tcp/80", "udp/53", "udp/5683", "udp/443")
	for _, filters := range []bool{false, true} {
		s := NewSurveyor(New(t.TempDir()), config.Config{Services: []string{"auto", "udp/53"}}, nil)
		f := Facts{FiltersOutput: filters}
		f.Services, f.Refused = services, map[policy.Selector]string{services[3]: "NAT"}
		s.keepAnswers(&f)
		for i, one := range services {
			if reason := f.Refused[one]; (reason != "") != (i == 3 || filters && i == 2) || i == 3 && reason != "NAT" {
				t.Errorf("filters %v: %s: %q", filters, one, reason)
			}
		}
	}
}

// While nothing is engaged, management connections are looked for less often; as soon as something is, at once.
func TestOperatorsAreLookedForLessInCalm(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	here := New(t.TempDir())
	here.Calm(true)
	s := NewSurveyor(here, config.Config{Ports: []uint16{netip.MustParseAddrPort(l.Addr().String()).Port()}}, nil)
	start := time.Now()
	want := func(after time.Duration, n int) {
		t.Helper()
		if peers, err := s.operators(start.Add(after)); err != nil || len(peers) != n {
			t.Errorf("after %s: operators %v, %v; want %d", after, peers, err, n)
		}
	}
	want(0, 0)
	want(loginGrace, 1)
	c.Close()
	want(loginGrace+loginLook-time.Second, 1)
	here.Calm(false)
	want(loginGrace+loginLook-time.Second, 0)
}
