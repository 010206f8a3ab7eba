package survey

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
)

// Rules are read again when something changed on which the answer depends, and only then.
func TestRulesAreReadWhenTheyChange(t *testing.T) {
	enter(t, "nft")
	feed(t, tableHome+" set web {\n type inet_service\n elements = { 80 }\n}\n set bad {\n type ipv4_addr\n}\n}\n"+
		chainNAT+"tcp dport @web redirect to :9\n}}"+chainIn+"ip saddr @bad drop\n}}")
	h, _ := fixture(t, nil)
	defer h.Close()
	refused := func() string { return strings.Join(refusals(t, h, "tcp/80, tcp/443"), "\n") }
	const nat = ": NAT on this host: chain nats of table home"
	for _, c := range []struct {
		name, change, want string
		reads              int
	}{
		{"nothing", "", "tcp/80" + nat, 0},
		{"an address in a set", "add element inet home bad { 192.0.2.1 }", "tcp/80" + nat, 0},
		{"an address that goes", "delete element inet home bad { 192.0.2.1 }", "tcp/80" + nat, 0},
		{"a new set", "add set inet home more { type ipv4_addr; }", "tcp/80" + nat, 0},
		{"a port in a set", "add element inet home web { 443 }", "tcp/443" + nat + "\ntcp/80" + nat, 1},
		{"a port that goes", "delete element inet home web { 443 }", "tcp/80" + nat, 1},
		{"all that go", "flush set inet home web", "", 1},
		{"a rule", "add rule inet home nats tcp dport 443 redirect", "tcp/443" + nat, 1},
		{"ctguard's own table",
			"add table inet ctguard\nadd chain inet ctguard c\nadd rule inet ctguard c accept", "tcp/443" + nat, 0},
		{"a rule that goes", "flush chain inet home nats", "", 1},
		{"a table that goes", "delete table inet home", "", 1},
	} {
		refused() // reads what was changed last
		before := h.read.reads
		h.read.took = 0
		feedMore(t, c.change+"\n")
		for range 3 {
			if got := refused(); got != c.want {
				t.Errorf("%s: refused\n%s\nwant\n%s", c.name, got, c.want)
			}
		}
		if got := h.read.reads - before; got != c.reads {
			t.Errorf("%s: rules were read %d times, want %d", c.name, got, c.reads)
		}
	}
}

// News that does not fit into the buffer counts as a change, whatever it was.
func TestLostNewsIsAChange(t *testing.T) {
	enter(t, "nft")
	feed(t, tableHome+" set bad {\n type ipv4_addr\n}\n}\n"+chainNAT+"tcp dport 80 redirect\n}}")
	h, _ := fixture(t, nil)
	defer h.Close()
	refusals(t, h, "tcp/80")
	var elements []string
	for i := range 20000 {
		elements = append(elements, fmt.Sprintf("10.0.%d.%d", i>>8, i&255))
	}
	w := h.read.watch
	for range 2 {
		feedMore(t, "add element inet home bad { "+strings.Join(elements, ", ")+" }\nflush set inet home bad\n")
	}
	if !w.changed() {
		t.Error("forty thousand elements that came and went fit into the buffer")
	}
	if w.changed() {
		t.Error("nothing changed since")
	}
}

// Elements that change while ten thousand rules are read do not make it begin again; rules that change do.
func TestRulesChangeWhileTheyAreRead(t *testing.T) {
	enter(t, "nft")
	many := strings.Repeat("ip saddr 192.0.2.1 tcp dport 443 counter accept\n", 10000)
	feed(t, tableHome+" set bad {\n type ipv4_addr\n}\n}\n"+chainNAT+"tcp dport 80 redirect\n}}"+chainIn+many+"}}")
	home := &nftables.Table{Family: nftables.TableFamilyINet, Name: "home"}
	bad := nftables.Set{Table: home, Name: "bad", KeyType: nftables.TypeIPAddr}
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		t.Fatal(err)
	}
	end, ended := make(chan bool), make(chan int)
	go func() {
		defer func() { _ = conn.CloseLasting() }()
		for i := 0; ; i++ {
			select {
			case <-end:
				ended <- i
				return
			case <-time.After(2 * time.Millisecond):
			}
			one := []nftables.SetElement{{Key: []byte{10, 0, byte(i >> 8), byte(i)}}}
			if conn.SetAddElements(&bad, one) != nil || conn.Flush() != nil {
				ended <- -1
				return
			}
		}
	}()
	interrupted := 0
	for range 10 {
		h, _ := fixture(t, nil)
		if got := refusals(t, h, "tcp/80, tcp/443"); len(got) != 1 || h.read.reads != 1 {
			t.Errorf("read %d times, refused %q", h.read.reads, got)
		}
		rules, err := readRuleset()
		if err != nil {
			t.Error(err)
		} else if rules.interrupted {
			interrupted++
		}
		h.Close()
	}
	close(end)
	if n := <-ended; n < 10 || interrupted == 0 {
		t.Errorf("%d elements were added, %d of 10 times while rules were read", n, interrupted)
	}
}

// A host whose rules change all the time has them read only now and then while nothing is about to go untracked.
func TestRulesRestWhileCalm(t *testing.T) {
	enter(t, "nft")
	feed(t, chainNAT+"tcp dport 80 redirect\n}}")
	h, _ := fixture(t, nil)
	defer h.Close()
	h.read.rest = rest
	refusals(t, h, "tcp/80")
	h.read.took = 10 * time.Millisecond // as if there were a thousand times as many rules
	h.Calm(true)
	run(t, "nft add rule inet home nats tcp dport 443 redirect")
	const nat = ": NAT on this host: chain nats of table home"
	if diff := cmp.Diff([]string{"tcp/80" + nat}, refusals(t, h, "tcp/80, tcp/443")); diff != "" || h.read.reads != 1 {
		t.Errorf("calm: read %d times, refused (-want +got):\n%s", h.read.reads, diff)
	}
	h.Calm(false)
	h.read.ended = time.Now().Add(-rest * h.read.took)
	both := []string{"tcp/443" + nat, "tcp/80" + nat}
	if diff := cmp.Diff(both, refusals(t, h, "tcp/80, tcp/443")); diff != "" || h.read.reads != 2 {
		t.Errorf("not calm any more: read %d times, refused (-want +got):\n%s", h.read.reads, diff)
	}
	h.Calm(true)
	run(t, "nft flush chain inet home nats")
	h.read.ended = time.Now().Add(-mostCalmRest)
	if got := refusals(t, h, "tcp/80, tcp/443"); len(got) > 0 || h.read.reads != 3 {
		t.Errorf("after the longest rest: read %d times, refused %q", h.read.reads, got)
	}
}

// A set of more elements than are read counts as one that has every port.
func TestLargeSetsHaveEverything(t *testing.T) {
	enter(t, "nft")
	var many []string
	for i := range mostElements + 1 {
		many = append(many, fmt.Sprint(10000+2*i))
	}
	for name, c := range map[string]struct{ rules, want string }{
		"all that are read":     {strings.Join(many[:mostElements], ", "), "tcp/10000"},
		"one more":              {strings.Join(many, ", "), "tcp/80 tcp/10000"},
		"one more, as vmap":     {strings.Join(many, " : jump web, ") + " : jump web", "tcp/80 tcp/10000"},
		"all, as vmap":          {strings.Join(many[:mostElements], " : jump web, ") + " : jump web", "tcp/10000"},
		"one that packets fill": {"", "tcp/80 tcp/10000"},
	} {
		rules := chainNAT + "tcp dport { " + c.rules + " } redirect to :9\n}}"
		switch {
		case strings.Contains(name, "vmap"):
			rules = tableHome + " chain web {\n meta l4proto tcp redirect to :9\n}\n chain other {\n accept\n}\n}\n" +
				chainNAT + "tcp dport vmap { " + c.rules + " }\n}}"
		case c.rules == "":
			rules = tableHome + " set s {\n type inet_service\n size 100\n flags dynamic\n}\n}\n" +
				chainNAT + "tcp dport @s redirect to :9\n}}"
		}
		feed(t, rules)
		h, _ := fixture(t, nil)
		refused, err := h.Refused(selectors(t, "tcp/80, tcp/10000"))
		var got []string
		for _, s := range selectors(t, "tcp/80, tcp/10000") {
			if refused[s] != "" {
				got = append(got, s.String())
			}
		}
		if strings.Join(got, " ") != c.want || err != nil {
			t.Errorf("%s: refused %q (%v), want %q", name, got, err, c.want)
		}
		h.Close()
	}
}
