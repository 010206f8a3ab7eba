package survey

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/nftables"
)

var asking = [][]byte{[]byte("lookup"), []byte("objref"), []byte("dynset")}

// asksForSets says whether a rule would have the kernel asked.
func asksForSets(b []byte) bool {
	return slices.ContainsFunc(asking, func(name []byte) bool { return bytes.Contains(b, name) })
}

// Whatever bytes a rule or the news of a change has, reading it ends without a panic.
func FuzzReadRule(f *testing.F) {
	expression := func(name string, data []byte) []byte {
		return append(textAttribute(1, name), textAttribute(2, string(data))...)
	}
	for _, name := range []string{"ct", "immediate", "nat", "objref", "target", "match", "dynset", "meta"} {
		f.Add(textAttribute(1, string(expression(name, textAttribute(3, "CONNMARK")))), uint16(6))
	}
	f.Fuzz(func(_ *testing.T, b []byte, kind uint16) {
		r := &ruleset{chains: make(map[chainKey]*chain), sets: make(map[setKey]*nftSet)}
		for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyINet} {
			at := chainKey{tableKey{family, "home"}, "pre"}
			into := &chain{base: true, kind: "filter"}
			r.chains[at], r.bases = into, append(r.bases, at)
			m := reader{rules: r, at: at, into: into, ipv4: family == nftables.TableFamilyIPv4}
			for _, name := range []string{"DNAT", "REDIRECT", "CONNMARK", "CT", "CONNSECMARK"} {
				m.target(name, uint32(kind)%3, b)
			}
			for _, name := range []string{"tcp", "udp", "multiport", "addrtype", "connlabel"} {
				m.match(name, uint32(kind)%3, b)
			}
		}
		for _, one := range []string{"", "s", "home"} {
			r.sets[setKey{r.bases[0].table, one}] = &nftSet{all: true, elements: []element{parseElement(b)}}
		}
		if !asksForSets(b) {
			r.readRule(r.bases[0], r.chains[r.bases[0]], b)
		}
		r.rewrites()
		w := &watch{}
		w.matter(b)
		if len(b) >= 4 {
			w.matters(kind, b)
		}
		parseElement(b)
	})
}
