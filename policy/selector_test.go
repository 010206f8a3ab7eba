package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// drawSelector makes every selector that has a name.
func drawSelector(t *rapid.T) Selector {
	s := Selector{Protocol: rapid.SampledFrom([]Protocol{TCP, UDP, ICMP, All, ""}).Draw(t, "protocol")}
	switch s.Protocol {
	case "":
		return Selector{Group: true}
	case All:
		return s
	case ICMP:
	case TCP, UDP:
		s.Port = rapid.Uint16().Draw(t, "port")
		if s.Port > 0 && s.Port < 1<<16-1 && rapid.Bool().Draw(t, "range") {
			s.Last = rapid.Uint16Range(s.Port+1, 1<<16-1).Draw(t, "last")
		}
	}
	prefixes := rapid.SampledFrom([]string{"", "0.0.0.0/0", "198.51.100.0/24", "203.0.113.7/32", "::ffff:192.0.2.0/120"})
	if rapid.Bool().Draw(t, "IPv6") {
		prefixes = rapid.SampledFrom([]string{"", "::/0", "2001:db8::/64", "2001:db8::1/128"})
	}
	s.Remote, _ = netip.ParsePrefix(prefixes.Draw(t, "with"))
	s.Local, _ = netip.ParsePrefix(prefixes.Draw(t, "at"))
	s.Device = rapid.StringMatching(`([a-z][a-z0-9._-]{2,14})?`).Draw(t, "on")
	if s.Port > 0 && s.Local.IsSingleIP() && (s.Last == 0 || s.Protocol == UDP) && rapid.Bool().Draw(t, "forwarded") {
		to := rapid.SampledFrom([]string{"10.0.0.2", "192.168.255.1"})
		if s.Local.Addr().Is6() {
			to = rapid.SampledFrom([]string{"fd00::2", "2001:db8::1"})
		}
		port := rapid.Uint16Min(1).Draw(t, "inside port")
		if s.Last > 0 {
			port = s.Port
		}
		s.Inside = netip.AddrPortFrom(netip.MustParseAddr(to.Draw(t, "to")), port)
		s.Uplink = rapid.StringMatching(`[a-z][a-z0-9._-]{2,14}`).Draw(t, "by")
	}
	return s
}

// What a selector is called is read back as that selector.
func TestSelectorRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSelector(t)
		back, err := ParseSelector(s.String())
		if err != nil || back != s {
			t.Fatalf("%q is read as %+v (%v), want %+v", s.String(), back, err, s)
		}
	})
}

// Whatever is read has one name, and what can't be read is refused in one line.
func FuzzParseSelector(f *testing.F) {
	for _, text := range []string{"tcp/80", "udp/1-2", "tcp", "echo with ::/0 at ::1/128",
		"tcp/80 on eth0 with 10.0.0.0/8", "all", "multicast", "tcp on lo"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSelector(text)
		if err != nil {
			if s != (Selector{}) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("%q is refused with %+v, %q", text, s, err)
			}
			return
		}
		if back, err := ParseSelector(s.String()); err != nil || back != s {
			t.Fatalf("%q is %+v, called %q, which is %+v (%v)", text, s, s, back, err)
		}
	})
}

func TestParseSelector(t *testing.T) {
	const forms = `" is none of "tcp", "tcp/PORT", "tcp/FIRST-LAST", the same of udp, "echo", ` +
		`each of them also followed by "with REMOTE-PREFIX", "at OWN-PREFIX" or "on INTERFACE"; "multicast"; "all"`
	const forward = `": a service that is forwarded has one port or range, "at ONE-ADDRESS/32 ` +
		`to INSIDE-ADDRESS:PORT by INTERFACE", both addresses of one family`
	for text, want := range map[string]string{
		"tcp/80 at 203.0.113.7/28":                       "tcp/80 at 203.0.113.0/28",
		"tcp/80 on eth0 at 10.0.0.0/8 with 192.0.2.0/24": "tcp/80 with 192.0.2.0/24 at 10.0.0.0/8 on eth0",
		"udp/10000-20000 on br-1.2_x":                    "udp/10000-20000 on br-1.2_x",
		"udp":                                            "udp",
		"tcp/443 at 203.0.113.1/32 on wan0 to 10.0.0.2:8443 by wan0": "tcp/443 at 203.0.113.1/32 on wan0 " +
			"to 10.0.0.2:8443 by wan0",
		"udp/53 by wan0 to [fd00::2]:53 at 2001:db8::1/128":  "udp/53 at 2001:db8::1/128 to [fd00::2]:53 by wan0",
		"tcp/443 at 203.0.113.0/24 to 10.0.0.2:443 by wan0":  forward,
		"tcp/443 at 203.0.113.1/32 to 10.0.0.2:443":          forward,
		"tcp/443 at 203.0.113.1/32 by wan0":                  forward,
		"tcp/443 to 10.0.0.2:443 by wan0":                    forward,
		"tcp at 203.0.113.1/32 to 10.0.0.2:443 by wan0":      forward,
		"echo at 203.0.113.1/32 to 10.0.0.2:443 by wan0":     forward,
		"tcp/443 at 203.0.113.1/32 to [fd00::2]:443 by wan0": forward,
		"tcp/443-444 at 203.0.113.1/32 to 10.0.0.2:8443 by wan0": `": a range of ports that is forwarded ` +
			`is of UDP and goes to the same ports`,
		"tcp/443 at 203.0.113.1/32 to 10.0.0.2 by wan0":   `": "10.0.0.2" is not an address and a port`,
		"tcp/443 at 203.0.113.1/32 to 10.0.0.2:0 by wan0": `": "10.0.0.2:0" is not an address and a port`,
		"all":                              "all",
		"":                                 forms,
		"sctp/80":                          forms,
		"tcp/0":                            forms,
		"tcp/080":                          forms,
		"tcp/":                             forms,
		"tcp/65536":                        forms,
		"tcp/80-80":                        forms,
		"tcp/90-80":                        forms,
		"tcp/80-":                          forms,
		"echo/80":                          forms,
		"all on eth0":                      forms,
		"multicast with 192.0.2.0/24":      forms,
		"tcp/80 by eth0":                   forward,
		"tcp/80 on":                        forms,
		"tcp/80 on eth0 on eth1":           forms,
		"tcp/80 with 192.0.2.0/24 at ::/0": `: 192.0.2.0/24 and ::/0 are not of one family`,
		"tcp/80 with 192.0.2.0":            `: netip.ParsePrefix("192.0.2.0"): no '/'`,
		"tcp/80 on lo":                     `: "lo" is not the name of an interface other than lo`,
		"tcp/80 on eth0*":                  `: "eth0*" is not the name`,
		"tcp/80 on sixteenletterdev":       `: "sixteenletterdev" is not the name`,
	} {
		s, err := ParseSelector(text)
		switch {
		case err == nil && s.String() != want:
			t.Errorf("%q is read as %q, want %q", text, s, want)
		case err != nil && (!strings.HasPrefix(err.Error(), fmt.Sprintf("selector %q", text)) ||
			!strings.Contains(err.Error(), want)):
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// A selector swallows those that name fewer of its ports.
func TestSwallows(t *testing.T) {
	for _, c := range []struct {
		wide, narrow string
		want         bool
	}{
		{"all", "tcp/22", true}, {"all", "echo", true}, {"all", "multicast", true}, {"all", "all", false},
		{"tcp", "tcp/22", true}, {"tcp", "udp/22", false}, {"tcp", "echo", false}, {"tcp", "tcp on eth0", false},
		{"tcp on eth0", "tcp/22", true}, {"tcp on eth0", "tcp/22 on eth1", false}, {"tcp/20-30", "tcp/22 on eth1", true},
		{"tcp/20-30", "tcp/30-40", true}, {"tcp/20-30", "tcp/31", false},
		{"tcp/20-30", "tcp", false}, {"tcp/20-30", "tcp/20-30", false},
		{"tcp/22", "tcp/22 with 192.0.2.0/24", false}, {"tcp/22 with 192.0.2.0/24", "tcp/22", false},
		{"tcp with 192.0.2.0/24", "tcp/22 with 192.0.2.128/25", true},
		{"tcp with 192.0.2.0/24", "tcp/22 with 198.51.100.0/24", false},
		{"tcp at 192.0.2.0/24", "tcp/22 at 198.51.100.0/24", false},
		{"multicast", "echo", false}, {"echo", "multicast", false},
	} {
		if got := parsed(t, c.wide).PartlyCovers(parsed(t, c.narrow)); got != c.want {
			t.Errorf("%q swallows %q: %v", c.wide, c.narrow, got)
		}
	}
}

func parsed(t *testing.T, text string) Selector {
	t.Helper()
	s, err := ParseSelector(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
