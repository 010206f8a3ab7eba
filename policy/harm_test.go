package policy

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A host has an ordinary day; then anything at all happens. Nobody who holds no more than usual is limited, asked for
// an assured entry, or put on an allowlist's other side.
func TestTheUsualIsNeverTaken(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Defaults(rapid.SampledFrom([]Profile{Auto, Server, NATGateway}).Draw(t, "profile"))
		m := New(c)
		now := dayStart
		usual := make(map[string]int)
		for i := range rapid.IntRange(1, 12).Draw(t, "users") {
			usual[fmt.Sprintf("192.0.2.%d/32", i)] = rapid.IntRange(1, 2000).Draw(t, "usual")
		}
		calm := calmCensus(now, usual)
		o := Observation{Capacity: max(20_000, 3*calm.Total), Host: Host{Admin: map[string]int{tcpLoose: 1}}}
		tick := func(count int, census *Census) Decision {
			now = now.Add(250 * time.Millisecond)
			o.Time, o.Count, o.Census = now, count, census
			if census != nil {
				census.Time = now
			}
			return m.Tick(o)
		}
		for range 20 {
			tick(calm.Total, nil)
		}
		tick(calm.Total, calm)
		for range rapid.IntRange(1, 20).Draw(t, "censuses of a flood") {
			held := make(map[string]int)
			for user, n := range usual {
				held[user] = rapid.IntRange(0, n).Draw(t, "held")
			}
			for i := range rapid.IntRange(0, 20).Draw(t, "bots") {
				held[fmt.Sprintf("198.51.100.%d/32", i)] = rapid.IntRange(1, 3000).Draw(t, "bot")
			}
			census := calmCensus(now, held)
			d := tick(min(o.Capacity, census.Total+rapid.IntRange(0, o.Capacity).Draw(t, "unlisted")), census)
			for _, l := range d.Posture.Limits {
				if strings.HasPrefix(l.Prefix.String(), "192.0.2.") {
					t.Fatalf("%s is limited: %s; it holds %d, usually %d", l.Prefix, l.Reason, held[l.Prefix.String()],
						usual[l.Prefix.String()])
				}
			}
			for _, cap := range d.Posture.Caps {
				n, user := held[cap.Prefix.String()]
				if user && strings.HasPrefix(cap.Prefix.String(), "192.0.2.") && cap.Keep < n {
					t.Fatalf("%s may keep %d of %d, usually %d", cap.Prefix, cap.Keep, n, usual[cap.Prefix.String()])
				}
			}
		}
	})
}

// Where nothing is known of an ordinary day, nobody loses a conversation.
func TestNothingIsTakenFromStrangers(t *testing.T) {
	m := New(Defaults(Server))
	o := Observation{Capacity: 1000, Count: 900, Time: dayStart, Host: Host{Admin: map[string]int{tcpLoose: 1}}}
	m.Tick(o) // the agent starts in the middle of it
	o.Time = o.Time.Add(time.Second)
	o.Count, o.Census = 960, calmCensus(o.Time, map[string]int{"198.51.100.1/32": 700, "192.0.2.1/32": 200})
	for i := range o.Census.Sources {
		o.Census.Sources[i].Classes[Assured] -= 100
		o.Census.Sources[i].Classes[Unreplied] += 100
	}
	d := m.Tick(o)
	if len(d.Posture.Caps) == 0 || len(d.Posture.Limits) == 0 {
		t.Fatalf("nobody is above a fair share: %+v", d.Posture)
	}
	for _, c := range d.Posture.Caps {
		if !c.SpareAssured {
			t.Errorf("%+v takes conversations", c)
		}
	}
}

// A class that nobody answers on an ordinary day, such as an overlay whose directions have ports of their own, is not
// taken for a flood; another one is.
func TestOrdinaryClassesAreNoFlood(t *testing.T) {
	overlay, flood := FlowClass{udp, 4789}, FlowClass{udp, 9}
	for _, class := range []FlowClass{overlay, flood} {
		m := New(Defaults(Server))
		o := Observation{Capacity: 10_000, Host: Host{Admin: map[string]int{tcpLoose: 1},
			Services: []Selector{{Protocol: UDP, Port: 4789}, {Protocol: UDP, Port: 9}}}}
		census := func(of FlowClass, n int) *Census {
			c := &Census{Time: o.Time, Whole: true, Seen: n, Total: n, Protocols: map[uint8]int{udp: n},
				Ports: []PortCount{{Protocol: udp, Port: of.Port, Entries: n}}, Rest: Holding{Entries: n}}
			c.Classes[Unreplied], c.Rest.Classes[Unreplied] = n, n
			return c
		}
		for i := range 12 {
			o.Time, o.Count = dayStart.Add(time.Duration(i)*250*time.Millisecond), 1000
			o.Census = census(overlay, 1000)
			m.Tick(o)
		}
		var d Decision
		for i := range 8 {
			o.Time, o.Count = o.Time.Add(250*time.Millisecond), 2000+1000*i
			o.Census = census(class, o.Count)
			d = m.Tick(o)
		}
		held := slices.ContainsFunc(d.Posture.Budgets, func(b Budget) bool { return b.Class == class }) ||
			slices.ContainsFunc(d.Posture.Purges, func(p Purge) bool { return p.Class == class })
		if held != (class == flood) {
			t.Errorf("%s: budgets %v, purges %v", class, d.Posture.Budgets, d.Posture.Purges)
		}
	}
}

// Who keeps a mapping alive every 25 seconds keeps it, whatever the profile and the pressure.
func TestFloorsOutlastKeepalives(t *testing.T) {
	for _, p := range []Profile{Server, NATGateway} {
		for name, least := range map[string]int{
			"nf_conntrack_udp_timeout":             30,   // WireGuard, SIP, STUN: 25 s
			"nf_conntrack_udp_timeout_stream":      3600, // RFC 3261, 10.2
			"nf_conntrack_tcp_timeout_established": 7440, // RFC 5382, REQ-5
			"nf_conntrack_tcp_timeout_fin_wait":    60,   // half closed, and waiting for its answer
			"nf_conntrack_tcp_timeout_close_wait":  3600, // who raised it did it for such connections

			// The longest wait between two packets that repeat what was lost, TCP_RTO_MAX.
			"nf_conntrack_tcp_timeout_unacknowledged": 120,
			"nf_conntrack_tcp_timeout_max_retrans":    120,

			"nf_conntrack_generic_timeout": 600, // tunnels without ports: ESP, 6in4
		} {
			if got := timeoutFloors(p)[name]; got < least {
				t.Errorf("%s: %s goes down to %d, want at least %d", p, name, got, least)
			}
		}
	}
}

// When the table is emptied at once, by conntrack -F or because this host took an address over, what lives is picked up
// again: TCP is not held to what conntrack knows for a while.
func TestEmptiedTable(t *testing.T) {
	m := New(Defaults(Server))
	m.Recall(OrdinaryDay{Updated: dayStart, Flows: true})
	o := Observation{Time: dayStart, Capacity: 1000, Count: 650, Host: Host{Admin: map[string]int{tcpLoose: 1}}}
	tick := func(count int, after time.Duration) Posture {
		o.Time, o.Count = o.Time.Add(after), count
		return m.Tick(o).Posture
	}
	tick(650, time.Second)
	if p := tick(650, time.Second); !p.DropInvalid || p.Settings[tcpLoose] != 0 {
		t.Fatalf("at 65 %%: %+v", p)
	}
	o.Work.Evicted += 400
	if p := tick(250, time.Second); !p.DropInvalid {
		t.Error("what ctguard evicts itself counts as a flush")
	}
	tick(650, time.Second)
	_, set := tick(20, time.Second).Settings[tcpLoose]
	if p := m.decision.Posture; p.DropInvalid || set {
		t.Errorf("after a flush: %+v", p)
	}
	tick(700, time.Minute)
	if p := tick(700, time.Second); p.DropInvalid {
		t.Error("a minute after the flush not all have spoken again")
	}
	if p := tick(700, pickUpFor); !p.DropInvalid {
		t.Error("drop-invalid does not come back")
	}
}

// An operator's release is on the posture's allowlist, ahead of the limit of a network that it is in.
func TestReleaseInsideALimit(t *testing.T) {
	m := New(Defaults(Server))
	until := dayStart.Add(time.Hour)
	m.Say(Word{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Until: until, Reason: "a"})
	m.Say(Word{Prefix: netip.MustParsePrefix("192.0.2.7/32"), Release: true, Until: until, Reason: "b"})
	p := m.Tick(Observation{Time: dayStart, Capacity: 1000}).Posture
	if !slices.Contains(p.Allow, netip.MustParsePrefix("192.0.2.7/32")) || len(p.Limits) != 1 {
		t.Errorf("allow %v, limits %v", p.Allow, p.Limits)
	}
	text := strings.Join(m.Explain(netip.MustParsePrefix("192.0.2.7/32")), "\n")
	if !strings.Contains(text, "left alone") || strings.Contains(text, "limited as") {
		t.Errorf("explain says\n%s", text)
	}
}

// Connections whose packets are dropped as INVALID again and again live: they are picked up again, unless they are
// those that ctguard took from a source above its share. When it happens again soon, it lasts longer.
func TestStraysArePickedUp(t *testing.T) {
	stray := func(from, to string) Stray { return Stray{netip.MustParseAddr(from), netip.MustParseAddr(to)} }
	const host = "203.0.113.1"
	for name, c := range map[string]struct {
		strays  []Stray
		invalid float64 // of the ordinary day, a second
		before  Posture
		want    bool
	}{
		"one of a host that is usually here": {strays: []Stray{stray("192.0.2.1", host)}, want: true},
		"one of a stranger":                  {strays: []Stray{stray("198.51.100.1", host)}},
		"two of strangers": {
			strays: []Stray{stray("198.51.100.1", host), stray("198.51.100.2", host)},
			want:   true},
		"late packets are ordinary here": {strays: []Stray{stray("192.0.2.1", host)}, invalid: 1},
		"answers to a stranger":          {strays: []Stray{stray("192.0.2.1", "198.51.100.1")}, want: true},
		"a source that is limited": {
			strays: []Stray{stray("198.51.100.1", host), stray("198.51.100.1", host)},
			before: Posture{Limits: []Limit{{Prefix: netip.MustParsePrefix("198.51.100.0/24")}}}},
		"a source whose entries were evicted": {
			strays: []Stray{stray("192.0.2.1", "198.51.100.1"), stray("198.51.100.1", host)},
			before: Posture{Caps: []Cap{{Prefix: netip.MustParsePrefix("198.51.100.1/32")}}}},
		"who is usually here, although it was cut": {
			strays: []Stray{stray("192.0.2.1", host)},
			before: Posture{Caps: []Cap{{Prefix: netip.MustParsePrefix("192.0.2.1/32")}}}, want: true},
	} {
		day := OrdinaryDay{Invalid: c.invalid,
			Sources: map[Source]*Usual{sourceOf("192.0.2.1/32"): {Assured: 1}}}
		var loose looseArbiter
		loose.watch(situation{Observation: Observation{Time: dayStart, Work: Work{Strays: c.strays}},
			ordinary: &day, before: c.before})
		if got := loose.pickingUp(dayStart); got != c.want {
			t.Errorf("%s: picked up %v", name, got)
		}
	}
	var loose looseArbiter
	now := dayStart
	for _, want := range []time.Duration{pickUpFor, 4 * pickUpFor, 16 * pickUpFor, stretchMost, stretchMost} {
		if loose.pickUp(now, "again"); loose.until.Sub(now) != want {
			t.Errorf("picked up for %s, not for %s", loose.until.Sub(now), want)
		}
		now = loose.until.Add(time.Minute)
	}
	if loose.pickUp(now.Add(24*time.Hour), "a day later"); loose.span != pickUpFor {
		t.Errorf("picked up for %s a day later", loose.span)
	}
}

// Where this host sees one direction of TCP, what nobody answers is conversations: it is neither a flood's class, nor
// dead, nor short-lived, and the walks are told.
func TestOneSidedTCPIsConversation(t *testing.T) {
	for _, day := range []OrdinaryDay{
		{Updated: dayStart, Flows: true},
		{Updated: dayStart, Flows: true, OneWay: 3},
		{Updated: dayStart, Flows: true, Invalid: 50},
	} {
		oneSided := day.OneWay > 0 || day.Invalid > 0
		m := New(Defaults(NATGateway))
		m.Recall(day)
		o := Observation{Capacity: 10_000,
			Host: Host{Admin: map[string]int{tcpLoose: 1, unanswered[0]: 120, unanswered[1]: 300}}}
		var d Decision
		for i := range 12 {
			o.Time, o.Count = dayStart.Add(time.Duration(i)*250*time.Millisecond), min(9900, 4000+1000*i)
			o.Census = &Census{Time: o.Time, Whole: true, Seen: o.Count, Total: o.Count, Protocols: map[uint8]int{tcp: o.Count},
				TCPStates: map[uint8]int{tcpSynSent: o.Count}, Ports: []PortCount{{Protocol: tcp, Port: 80, Entries: o.Count}},
				Rest: Holding{Entries: o.Count}}
			o.Census.Classes[Unreplied], o.Census.Rest.Classes[Unreplied] = o.Count, o.Count
			d = m.Tick(o)
		}
		_, shorter := d.Posture.Settings[unanswered[0]]
		if held := len(d.Posture.Budgets)+len(d.Posture.Purges) > 0; held == oneSided || shorter == oneSided ||
			d.Posture.Retire.Dead == oneSided || d.Posture.OneSided != oneSided {
			t.Errorf("one-sided %v: budgets %v, purges %v, settings %v, retire %+v, told %v", oneSided, d.Posture.Budgets,
				d.Posture.Purges, d.Posture.Settings, d.Posture.Retire, d.Posture.OneSided)
		}
	}
}

// When there are more heavy sources than can be limited one by one, their networks are limited: not a network of
// somebody who is usually here.
func TestFoldSparesTheUsual(t *testing.T) {
	c := Defaults(NATGateway)
	day := OrdinaryDay{Sources: map[Source]*Usual{sourceOf("192.0.2.200/32"): {Assured: 5}}}
	var due []usage
	for i := range 2 * foldFrom {
		for _, network := range []string{"192.0.2.", "198.51.100."} {
			due = append(due, usage{Holding: Holding{Prefix: netip.MustParsePrefix(fmt.Sprintf("%s%d/32", network, i+1))}})
		}
	}
	var got []string
	for _, u := range fold(due, situation{cfg: &c, ordinary: &day}) {
		got = append(got, u.Prefix.String())
	}
	if !slices.Contains(got, "198.51.100.0/24") || slices.Contains(got, "192.0.2.0/24") || len(got) != 2*foldFrom+1 {
		t.Errorf("limited: %v", got)
	}
}

// What a proxy on this host leaves behind is let go soon, and nobody else is limited for it: only for what comes faster
// than it can be swept away without it.
func TestOthersDoNotPayForLoopback(t *testing.T) {
	for opens, limited := range map[int]bool{12: false, 100: true} {
		m := New(Defaults(Server))
		o := Observation{Capacity: 21845, Host: Host{Admin: map[string]int{tcpLoose: 1},
			Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}}
		census := func(proxy, client int) *Census {
			c := &Census{Time: o.Time, Whole: true, Rest: Holding{Entries: 10_800}}
			c.Rest.Classes[Assured] = 10_800
			closing := func(prefix string, n int) {
				h := Holding{Prefix: netip.MustParsePrefix(prefix), Entries: n}
				h.Classes[Closing] = n
				c.Sources = append(c.Sources, h)
			}
			closing("127.0.0.1/32", proxy)
			for i := range 20 {
				closing(fmt.Sprintf("203.0.%d.1/32", i), client)
			}
			c.Classes[Assured], c.Classes[Closing] = 10_800, proxy+20*client
			c.Seen = 10_800 + proxy + 20*client
			c.Total = c.Seen
			return c
		}
		o.Time, o.Count = dayStart, 10_800
		m.Tick(o)
		proxy, client := 4000, 90
		var d Decision
		for range 2 {
			o.Time = o.Time.Add(time.Second)
			o.Census = census(proxy, client)
			o.Count = o.Census.Seen + 4000 // so that evict is engaged
			d = m.Tick(o)
			proxy, client = proxy+1000, client+opens
		}
		if d.Posture.Level < 6 {
			t.Fatalf("level %d: evict is not engaged", d.Posture.Level)
		}
		if (len(d.Posture.Limits) > 0) != limited {
			t.Errorf("clients who open %d flows a second each: limits %v", opens, d.Posture.Limits)
		}
	}
}

// Handshakes are purged only where nothing else deals with a flood of them and who is purged too soon is picked up.
func TestWhoseHandshakesArePurged(t *testing.T) {
	web := Selector{Protocol: TCP, Port: 80}
	for _, c := range []struct {
		name   string
		loose  int
		bySYN  string
		proxy  bool
		passes bool // by way of a router without a service
		growth int  // entries in a quarter of a second
		purged bool
	}{
		{"nothing else helps", 1, "", false, false, 500, true},
		{"the administrator has tcp_loose=0", 0, "", false, false, 500, false},
		{"the filter drops what is new and no SYN", 1, "chain input", false, false, 500, false},
		{"synproxy stands in front", 1, "", true, false, 500, false},
		{"synproxy will stand in front", 1, "", true, false, 7000, false},
		{"it passes", 1, "", false, true, 500, true},
		{"it passes, and the filter drops what is new and no SYN", 1, "chain forward", false, true, 500, false},
	} {
		m := New(Defaults(Server))
		o := Observation{Capacity: 10_000, Host: Host{Admin: map[string]int{tcpLoose: c.loose}, Listeners: []Selector{web},
			Refused: map[Selector]string{web: "a mark"}, Services: []Selector{web},
			Unproxied: map[Selector]string{web: "a mark"},
			Handshake: Handshake{MSS4: 1460, MSS6: 1440, WindowScale: 7, SACK: true, Timestamps: true}}}
		if o.BySYN = c.bySYN; c.proxy {
			o.Unproxied = nil
		}
		if c.passes {
			o.Services, o.Listeners = nil, nil
		}
		purged, strict, proxied := false, false, false
		for i := range 40 {
			o.Time, o.Count = dayStart.Add(time.Duration(i)*250*time.Millisecond), min(1000+c.growth*max(0, i-4), 9900)
			n := o.Count - 500
			o.Census = &Census{Time: o.Time, Whole: true, Seen: o.Count, Total: o.Count, Protocols: map[uint8]int{tcp: o.Count},
				Ports: []PortCount{{Protocol: tcp, Port: 80, Entries: o.Count, Replied: o.Count}}, Rest: Holding{Entries: o.Count}}
			o.Census.Classes[HalfOpen], o.Census.Classes[Assured], o.Census.Rest.Classes[HalfOpen] = n, 500, n
			if c.passes && !purged {
				o.Census.Looks = []ClassLook{{FlowClass: FlowClass{tcp, 80}, Entries: n, Passing: n}}
			}
			p := m.Tick(o).Posture
			proxied = proxied || len(p.Synproxy) > 0
			if i := slices.IndexFunc(p.Purges, func(u Purge) bool { return u.Handshakes }); i >= 0 {
				if u := p.Purges[i]; u.Local == c.passes || u.Passing != c.passes {
					t.Errorf("%s: %+v", c.name, u)
				}
				loose, set := p.Settings[tcpLoose]
				purged, strict = true, strict || set && loose == 0
			}
		}
		if purged != c.purged || strict || proxied != c.proxy {
			t.Errorf("%s: purged %t, with tcp_loose=0 %t, proxied %t", c.name, purged, strict, proxied)
		}
	}
}

// Where one service may go untracked and another could have cookies only, the second is told why it has none.
func TestWhyNoCookiesBesideUntracked(t *testing.T) {
	free := Selector{Protocol: TCP, Port: 80}
	inside, err := ParseSelector("tcp/443 at 203.0.113.1/32 on wan0 to 10.0.0.2:8443 by wan0")
	if err != nil {
		t.Fatal(err)
	}
	m := New(Defaults(Auto))
	m.Tick(Observation{Time: dayStart, Capacity: 10_000, Host: Host{Admin: map[string]int{tcpLoose: 1},
		Services: []Selector{free, inside}, Refused: map[Selector]string{inside: "by state"},
		Listeners: []Selector{free, inside}, Unproxied: map[Selector]string{free: "a helper"}},
		Work: Work{InsideMSS: map[Selector]uint16{inside: 1460}}})
	const want = "tcp/80 may go untracked, and its connections must not meet tcp_loose=0, which cookies need"
	for _, s := range m.Steps() {
		if s.Name == Synproxy && s.Skipped != inside.String()+" could be proxied, but "+want {
			t.Errorf("synproxy is skipped: %q", s.Skipped)
		}
	}
	for _, s := range m.Selectors() {
		if s.Selector == inside.String() && s.Cookies != want {
			t.Errorf("cookies of %s: %q", s.Selector, s.Cookies)
		}
	}
}

// A service of this host's own that is flooded is purged, and never gets a budget as well, which its clients would
// share with the flood: what a census sees of it right after a purge was born a moment ago, and is not answered yet.
func TestWhatIsPurgedGetsNoBudget(t *testing.T) {
	dns := Selector{Protocol: UDP, Port: 53}
	class := FlowClass{Protocol: udp, Port: 53}
	m := New(Defaults(Server))
	o := Observation{Capacity: 10_000, Host: Host{Admin: map[string]int{tcpLoose: 1}, Services: []Selector{dns},
		Refused: map[Selector]string{dns: "a mark"}}}
	purged, seenUnanswered := false, 0
	for i := range 60 {
		o.Time, o.Count = dayStart.Add(time.Duration(i)*250*time.Millisecond), min(1000+500*i, 9900)
		n := o.Count - 500
		port := PortCount{Protocol: udp, Port: 53, Entries: n, Replied: n}
		kind := Replied
		if purged {
			port.Replied, kind = 0, Unreplied
			seenUnanswered++
		}
		o.Census = &Census{Time: o.Time, Whole: true, Seen: o.Count, Total: o.Count, Protocols: map[uint8]int{udp: o.Count},
			ProtocolsReplied: map[uint8]int{udp: port.Replied}, Ports: []PortCount{port}, Rest: Holding{Entries: o.Count}}
		o.Census.Classes[kind], o.Census.Classes[Assured], o.Census.Rest.Classes[kind] = n, 500, n
		p := m.Tick(o).Posture
		purged = purged || slices.ContainsFunc(p.Purges, func(u Purge) bool { return u.Class == class })
		if slices.ContainsFunc(p.Budgets, func(b Budget) bool { return b.Class == class }) {
			t.Fatalf("it has a budget after %d censuses in which nothing was answered", seenUnanswered)
		}
	}
	if !purged || seenUnanswered == 0 {
		t.Error("it was not purged")
	}
}

// What a flood of questions leaves at a forwarded service goes once it is answered, while the table is about to be
// full, and nobody is limited for it; where a translated answer that came late would leave with its inside address it
// stays.
func TestForwardedQuestionsArePurged(t *testing.T) {
	asked := netip.MustParseAddr("203.0.113.1")
	const translated = "udp/53 at 203.0.113.1/32 to 192.0.2.10:5353 by wan0"
	inside := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	for _, c := range []struct {
		name, service string
		inside        []netip.Prefix
		begin, growth int // entries, and how many more a second, for four seconds
		purged        bool
		profile       Profile
		passes        int // percent, to one address
	}{
		{"translated", translated, inside, 1000, 2000, true, Auto, 0},
		{"a range", "udp/50-60 at 203.0.113.1/32 to 192.0.2.10:50 by wan0", inside, 1000, 2000, true, Auto, 0},
		{"routed, and asked as others are", "udp/53 at 203.0.113.1/32 to 203.0.113.1:53 by wan0", nil, 1000, 2000, false,
			Auto, 0},
		{"routed", "udp/53 at 203.0.113.1/32 to 203.0.113.1:53 by wan0", nil, 1000, 2000, true, Auto, 60},
		{"translated, and nobody is masqueraded", translated, nil, 1000, 2000, false, Auto, 0},
		{"another port", "udp/54 at 203.0.113.1/32 to 192.0.2.10:5353 by wan0", inside, 1000, 2000, false, Auto, 0},
		{"crowded, and pressure below the mark", translated, inside, 8100, 0,
			false, Auto, 0},
		{"passed on, and nobody knows a service", "", nil, 1000, 2000, true, Auto, 60},
		{"hardly passed on", "", nil, 1000, 2000, false, Auto, 40},
		{"a gateway by its configuration", translated, nil, 1000, 2000, true, NATGateway, 0},
	} {
		m := New(Defaults(c.profile))
		o := Observation{Capacity: 10_000, Host: Host{Inside: c.inside}}
		if c.service != "" {
			service, err := ParseSelector(c.service)
			if err != nil {
				t.Fatal(err)
			}
			o.Services, o.Refused = []Selector{service}, map[Selector]string{service: "its packets are let in by state"}
		}
		purged := false
		for i := range 40 {
			o.Time, o.Count = dayStart.Add(time.Duration(i)*250*time.Millisecond), min(c.begin+c.growth/4*min(i, 16), 9900)
			n := o.Count - 500
			o.Census = &Census{Time: o.Time, Whole: true, Seen: o.Count, Total: o.Count, Protocols: map[uint8]int{udp: n},
				ProtocolsReplied: map[uint8]int{udp: n},
				Ports:            []PortCount{{Protocol: udp, Port: 53, Entries: n, Replied: n}}, Rest: Holding{Entries: o.Count}}
			o.Census.Classes[Replied], o.Census.Classes[Assured], o.Census.Rest.Classes[Replied] = n, 500, n
			if class := (FlowClass{udp, 53}); c.passes > 0 && !purged { // what is purged is hardly seen
				o.Census.Looks = []ClassLook{{FlowClass: class, Entries: n, Passing: n * c.passes / 100, To: asked}}
			}
			p := m.Tick(o).Posture
			for _, one := range p.Purges {
				purged = purged || one.Class == FlowClass{udp, 53} && one.Translated == (c.passes == 0) &&
					one.Passing != one.Translated && (one.To == asked) == one.Passing
				if one.Local || !one.Passing && !one.Translated {
					t.Errorf("%s: %+v", c.name, one)
				}
			}
			if len(p.Limits)+len(p.Budgets) > 0 {
				t.Fatalf("%s: limits %v, budgets %v", c.name, p.Limits, p.Budgets)
			}
		}
		if purged != c.purged {
			t.Errorf("%s: purged %t, want %t", c.name, purged, c.purged)
		}
	}
}

// A spoofed flood from the addresses of a network shows each of them with an entry or a few, more than anybody could
// open if all were to have the same: then ordinary users, who open several, are not limited for it, nor is anybody.
func TestSpoofedNetworkLimitsNobody(t *testing.T) {
	const calm, lasting = 40, 30_000
	random := rand.New(rand.NewPCG(1, 2))
	m := New(Defaults(Auto))
	o := Observation{Capacity: 65_536}
	for i := range 2 * calm {
		flood := max(0, min(4000*(i-calm), 34_000))
		o.Time, o.Count = dayStart.Add(time.Duration(i)*300*time.Millisecond), lasting+flood
		census := &Census{Time: o.Time, Whole: true, Seen: o.Count, Total: o.Count, Protocols: map[uint8]int{udp: o.Count},
			ProtocolsReplied: map[uint8]int{udp: o.Count}, Distinct: 30_000}
		held := make(map[netip.Addr]int)
		for range flood {
			held[netip.AddrFrom4([4]byte{198, 18, byte(random.Uint32()), byte(random.Uint32())})]++
		}
		for i := range 20 {
			held[netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})] = 8
		}
		for addr, n := range held {
			h := Holding{Prefix: netip.PrefixFrom(addr, 32), Entries: n}
			h.Classes[Replied] = n
			census.Sources = append(census.Sources, h)
			census.Classes[Replied] += n
		}
		slices.SortFunc(census.Sources, func(a, b Holding) int {
			return cmp.Or(b.Entries-a.Entries, a.Source().Compare(b.Source()))
		})
		const listed = 8192
		census.Classes[Assured], census.Rest.Entries, census.Rest.Classes[Assured] = lasting, lasting, lasting
		for _, h := range census.Sources[min(listed, len(census.Sources)):] {
			census.Rest.Entries += h.Entries
			census.Rest.Classes[Replied] += h.Entries
		}
		census.Sources = census.Sources[:min(listed, len(census.Sources))]
		o.Census = census
		if p := m.Tick(o).Posture; len(p.Limits) > 0 {
			t.Fatalf("census %d: %d sources are limited: %v: %s", i, len(p.Limits), p.Limits[0].Prefix, p.Limits[0].Reason)
		}
	}
}

// Whoever writes the address of a usual client into packets does not have it limited where what is asked in its name
// can be purged; a stranger who asks as much is limited, in all but TCP. Where most of what fills the table can't be
// purged, the client is limited as well, and keeps its TCP.
func TestFloodInNamesOfOthers(t *testing.T) {
	const calm = 60
	dns := Selector{Protocol: UDP, Port: 53}
	client, stranger := netip.MustParsePrefix("203.0.113.16/32"), netip.MustParsePrefix("198.18.0.1/32")
	for name, c := range map[string]struct {
		asked, beside int // by each of them, and by others at a port that nobody serves
		limited       []netip.Prefix
	}{
		"it can be purged":      {25_000, 0, []netip.Prefix{stranger}},
		"most can't be, beside": {6_000, 40_000, []netip.Prefix{stranger, client}},
	} {
		m := New(Defaults(Server))
		o := Observation{Capacity: 65_536, Host: Host{Admin: map[string]int{tcpLoose: 1}, Services: []Selector{dns},
			Refused: map[Selector]string{dns: "a mark"}}}
		limited, purged := make(map[netip.Prefix]bool), false
		for i := range 2 * calm {
			part := float64(max(0, min(i-calm, 10))) / 10
			asked, beside := int(part*float64(c.asked)), int(part*float64(c.beside))
			o.Time, o.Count = dayStart.Add(time.Duration(i)*300*time.Millisecond), 10_000+2*asked+beside
			o.Census = questions(client, stranger, asked, beside)
			o.Census.Time = o.Time
			p := m.Tick(o).Posture
			purged = purged || slices.ContainsFunc(p.Purges, func(u Purge) bool { return u.Class == FlowClass{udp, 53} })
			for _, l := range p.Limits {
				if limited[l.Prefix] = true; !l.ButTCP {
					t.Fatalf("%s: %s is limited altogether: %s", name, l.Prefix, l.Reason)
				}
			}
		}
		if want := len(c.limited); len(limited) != want || c.beside == 0 && !purged {
			t.Errorf("%s: purged %v, limited %v, want %v", name, purged, limited, c.limited)
		}
		for _, p := range c.limited {
			if !limited[p] {
				t.Errorf("%s: %s is not limited", name, p)
			}
		}
	}
}

// questions is a census in which two sources, of whom the first has eight connections, ask a service so much each, and
// nobody who is listed asks a port beside.
func questions(client, stranger netip.Prefix, asked, beside int) *Census {
	known, other := Holding{Prefix: client, Entries: 8 + asked, Proven: 8}, Holding{Prefix: stranger, Entries: asked}
	known.Classes[Assured], known.Classes[Replied], other.Classes[Replied] = 8, asked, asked
	all := 2*asked + beside
	c := &Census{Whole: true, Seen: 10_000 + all, Total: 10_000 + all, Sources: []Holding{known},
		Protocols: map[uint8]int{udp: all, tcp: 10_000}, ProtocolsReplied: map[uint8]int{udp: all, tcp: 10_000},
		Ports: []PortCount{{Protocol: udp, Port: 53, Entries: 2 * asked, Replied: 2 * asked},
			{Protocol: udp, Port: 161, Entries: beside, Replied: beside}}}
	if asked > 0 {
		c.Sources = append(c.Sources, other)
	}
	c.Classes[Assured], c.Classes[Replied] = 10_000, all
	c.Rest.Entries, c.Rest.Classes[Assured], c.Rest.Classes[Replied] = 9_992+beside, 9_992, beside
	return c
}
