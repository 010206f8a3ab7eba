package nft

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
)

// Render returns the ruleset that Apply would make, in the syntax that nft -f reads. It needs no
// kernel. For a state that Apply refuses it returns a comment with the reason.
func Render(d Desired, now time.Time) string {
	if err := d.validate(); err != nil {
		return "# " + err.Error() + "\n"
	}
	if !d.Posture.HasRules() {
		return ""
	}
	var keep retained
	r := d.ruleset(now, &keep)
	var w strings.Builder
	fmt.Fprintf(&w, "table inet %s {\n\tflags owner\n", Name)
	for _, c := range r.counters {
		fmt.Fprintf(&w, "\n\tcounter %s {\n\t}\n", c)
	}
	for _, s := range addressSets() {
		s.render(&w, r.addresses[s.name], now)
	}
	for _, name := range serviceSets() {
		renderServices(&w, name, r.services[name])
	}
	for _, s := range portSets() {
		s.render(&w, r.ports[s.name])
	}
	for _, s := range straySets {
		s.render(&w)
	}
	for _, s := range saidBy {
		if len(r.learn) > 0 {
			s.render(&w)
		}
	}
	for _, of := range r.scopes {
		for _, s := range zoneSets(of) {
			s.render(&w, r.addresses[s.name], now)
		}
	}
	sets := r.flowSets()
	for _, name := range slices.Sorted(maps.Keys(sets)) {
		sets[name].render(&w)
	}
	for _, s := range greedySets(r.greedy) {
		s.render(&w, r.greedy[s], now)
	}
	for _, c := range r.chains {
		c.render(&w)
	}
	w.WriteString("}\n")
	return w.String()
}

// typeNames is what nft calls a concatenation of types.
func typeNames(types []nftables.SetDatatype) string {
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = t.Name
	}
	return strings.Join(names, " . ")
}

// render writes an address set.
func (s addressSet) render(w *strings.Builder, elements []element, now time.Time) {
	block, typ := "set", addressType(s.v6).Name
	if s.kind == directing {
		block, typ = "map", typ+" : verdict"
	}
	fmt.Fprintf(w, "\n\t%s %s {\n\t\ttype %s\n", block, s.name, typ)
	switch s.kind {
	case permanent:
		fmt.Fprint(w, "\t\tflags interval\n")
	case ending, directing:
		fmt.Fprint(w, "\t\tflags interval,timeout\n")
	case remembering:
		fmt.Fprintf(w, "\t\tsize %d\n\t\tflags dynamic,timeout\n\t\ttimeout %s\n", narrowSize, spell(narrowTimeout))
	case metering:
		fmt.Fprintf(w, "\t\tsize %d\n\t\tflags dynamic,timeout\n\t\ttimeout %s\n", meterSize, spell(meterTimeout))
	}
	var list []string
	for _, e := range elements {
		text := e.prefix.String()
		if e.prefix.IsSingleIP() {
			text = e.prefix.Addr().String()
		}
		if !e.until.IsZero() {
			text += " timeout " + spell(max(e.until.Sub(now), time.Millisecond))
		}
		if s.kind == directing {
			text += " : goto " + prefixRateOf(e.prefix, s.of).chain()
		}
		list = append(list, text)
	}
	renderElements(w, list)
}

func renderServices(w *strings.Builder, name string, elements map[service]struct{}) {
	fmt.Fprintf(w, "\n\tset %s {\n\t\ttype inet_proto . inet_service\n", name)
	if slices.Contains(countingSets(), name) {
		fmt.Fprint(w, "\t\tcounter\n")
	}
	var list []string
	for s := range elements {
		list = append(list, fmt.Sprintf("%s . %d", s.proto, s.port))
	}
	slices.Sort(list)
	renderElements(w, list)
}

// render writes a port set.
func (s portSet) render(w *strings.Builder, elements map[uint16]struct{}) {
	fmt.Fprintf(w, "\n\tset %s {\n\t\ttype inet_service\n", s.name)
	var list []string
	for _, port := range slices.Sorted(maps.Keys(elements)) {
		list = append(list, fmt.Sprint(port))
	}
	renderElements(w, list)
}

// renderElements closes a set's block.
func renderElements(w *strings.Builder, list []string) {
	if len(list) > 0 {
		fmt.Fprintf(w, "\t\telements = { %s }\n", strings.Join(list, ",\n\t\t\t     "))
	}
	fmt.Fprint(w, "\t}\n")
}

// render writes a flow set.
func (s flowSet) render(w *strings.Builder) {
	fmt.Fprintf(w, "\n\tset %s {\n\t\ttype %s\n\t\tsize %d\n", s.name, typeNames(s.keyTypes()), flowSetSize)
	fmt.Fprintf(w, "\t\tflags dynamic,timeout\n\t\ttimeout %s\n\t}\n", spell(s.life))
}

// render writes a chain.
func (c chain) render(w *strings.Builder) {
	fmt.Fprintf(w, "\n\tchain %s {\n", c.name)
	if h := c.hook; h != nil {
		fmt.Fprintf(w, "\t\ttype %s hook %s priority %d; policy accept;\n", h.kind(), h.name, h.priority)
	}
	for _, r := range c.rules {
		fmt.Fprintf(w, "\t\t%s comment %q\n", r.text, r.comment())
	}
	fmt.Fprint(w, "\t}\n")
}

// spell writes a duration as nft does, down to milliseconds.
func spell(d time.Duration) string {
	var text string
	for _, unit := range []struct {
		name string
		size time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}, {"ms", time.Millisecond}} {
		if n := d / unit.size; n > 0 {
			text += fmt.Sprintf("%d%s", n, unit.name)
			d %= unit.size
		}
	}
	return text
}
