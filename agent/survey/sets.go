package survey

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// mostElements is how many elements of a set are read. A larger one counts as if it had everything: the
// kernel needs a second for half a million.
const mostElements = 4096

// nftSet is what is known of a set or map of nf_tables.
type nftSet struct {
	flags      uint32 // NFT_SET_INTERVAL and so on
	objectType uint32 // what a map to objects leads to: NFT_OBJECT_CT_HELPER and so on
	elements   []element
	all        bool // elements has all of them
	limits     bool // each element counts connections
}

// element is one element of a set.
type element struct {
	key      []byte
	end      bool   // in a set of intervals: where the one before ends, itself not included
	catchall bool   // stands for every key that is not in the set
	unclear  bool   // has something that is not read here
	chain    string // in a map to verdicts: where to jump
	data     []byte // in a map to values
}

// Attributes of sets that package unix lacks: enum nft_set_attributes, nft_set_elem_attributes.
const (
	setObjectType  = 15     // NFTA_SET_OBJ_TYPE
	setExpression  = 17     // NFTA_SET_EXPR
	setExpressions = 18     // NFTA_SET_EXPRESSIONS
	elementKeyEnd  = 10     // NFTA_SET_ELEM_KEY_END
	flagCatchall   = 2      // NFT_SET_ELEM_CATCHALL
	flagEvaluated  = 1 << 5 // NFT_SET_EVAL
	flagConcat     = 1 << 7 // NFT_SET_CONCAT
)

type setKey struct {
	table tableKey
	name  string
}

// set returns a set of a table. What can't be read counts as a set that may have everything.
func (r *ruleset) set(table tableKey, name string) *nftSet {
	key := setKey{table, name}
	if known := r.sets[key]; known != nil {
		return known
	}
	found := new(nftSet)
	r.sets[key] = found
	request := append(textAttribute(unix.NFTA_SET_TABLE, table.name), textAttribute(unix.NFTA_SET_NAME, name)...)
	err := ask(unix.NFT_MSG_GETSET, unix.NLM_F_ACK, byte(table.family), request, func(b []byte) bool {
		found.flags = number(b[4:], unix.NFTA_SET_FLAGS)
		found.objectType = number(b[4:], setObjectType)
		found.limits = text(attribute(attribute(b[4:], setExpression), unix.NFTA_EXPR_NAME)) == "connlimit"
		for _, one := range attributes(attribute(b[4:], setExpressions)) {
			found.limits = found.limits || text(attribute(one, unix.NFTA_EXPR_NAME)) == "connlimit"
		}
		return true
	})
	if err != nil || found.flags&flagEvaluated != 0 {
		return found // packets may add to such a set, of which nobody is told
	}
	all := true
	request = append(textAttribute(unix.NFTA_SET_ELEM_LIST_TABLE, table.name),
		textAttribute(unix.NFTA_SET_ELEM_LIST_SET, name)...)
	err = r.complete(dump(unix.NFT_MSG_GETSETELEM, byte(table.family), request, func(b []byte) bool {
		for _, one := range attributes(attribute(b[4:], unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
			found.elements = append(found.elements, parseElement(one))
		}
		all = len(found.elements) <= mostElements
		return all
	}))
	found.all = all && err == nil
	if !found.all {
		found.elements = nil
	}
	return found
}

// parseElement copies what matters of one element.
func parseElement(b []byte) (e element) {
	for kind, value := range attributes(b) {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			e.key = slices.Clone(attribute(value, unix.NFTA_DATA_VALUE))
		case elementKeyEnd:
			e.unclear = true
		case unix.NFTA_SET_ELEM_FLAGS:
			if len(value) == 4 {
				flags := binary.BigEndian.Uint32(value)
				e.end, e.catchall = flags&unix.NFT_SET_ELEM_INTERVAL_END != 0, flags&flagCatchall != 0
			}
		case unix.NFTA_SET_ELEM_DATA:
			if verdict := attribute(value, unix.NFTA_DATA_VERDICT); verdict != nil {
				e.chain = text(attribute(verdict, unix.NFTA_VERDICT_CHAIN))
			}
			e.data = slices.Clone(attribute(value, unix.NFTA_DATA_VALUE))
		}
	}
	return e
}

// intervals says whether the elements of a set are where intervals begin and end.
func (s *nftSet) intervals() bool { return s.flags&unix.NFT_SET_INTERVAL != 0 }

// concatenated says whether the keys of a set are of several parts. Kernels before 5.6 don't say; there
// the length of the keys does.
func (s *nftSet) concatenated() bool { return s.flags&flagConcat != 0 }

// ports returns the ports that a set has and the element that each range of them comes from.
func (s *nftSet) ports() (list []ports, from []element, ok bool) {
	if !s.all || s.concatenated() {
		return nil, nil, false
	}
	return portsOf(s.elements, s.intervals())
}

// portsOf reads a set of ports. In a set of intervals each element begins one or ends the one before
// it, itself not included.
func portsOf(elements []element, intervals bool) (list []ports, from []element, ok bool) {
	list = []ports{}
	for _, e := range elements {
		if len(e.key) != 2 || e.unclear || e.catchall {
			return nil, nil, false
		}
	}
	elements = slices.Clone(elements)
	slices.SortFunc(elements, func(a, b element) int { return slices.Compare(a.key, b.key) })
	for i, e := range elements {
		r := ports{first: binary.BigEndian.Uint16(e.key)}
		switch r.last = r.first; {
		case e.end:
			continue
		case intervals && i+1 < len(elements):
			r.last = max(r.first, binary.BigEndian.Uint16(elements[i+1].key)-1)
		case intervals:
			r.last = 1<<16 - 1
		}
		list, from = append(list, r), append(from, e)
	}
	return list, from, true
}

// protocols returns the IP protocols that a set has.
func (s *nftSet) protocols() (list []uint8, ok bool) {
	if !s.all || s.concatenated() || s.intervals() {
		return nil, false
	}
	list = []uint8{}
	for _, e := range s.elements {
		if len(e.key) != 1 || e.catchall {
			return nil, false
		}
		list = append(list, e.key[0])
	}
	return list, true
}

// values returns what a map leads to; nil where that is not known.
func (s *nftSet) values() (list [][]byte) {
	if !s.all {
		return nil
	}
	list = [][]byte{}
	for _, e := range s.elements {
		if e.data != nil {
			list = append(list, e.data)
		}
	}
	return list
}

// chains returns the chains that a map to verdicts may jump to, with what is known of the packets that come to
// each when its keys are destination ports. Where not all is known it returns false.
func (s *nftSet) chains(ofPorts func(ports) constraints) (list []jump, ok bool) {
	if !s.all {
		return nil, false
	}
	if ofPorts != nil {
		if ranges, from, ok := s.ports(); ok {
			for i, e := range from {
				if e.chain != "" {
					list = append(list, jump{e.chain, ofPorts(ranges[i])})
				}
			}
			return list, true
		}
	}
	for _, e := range s.elements {
		if e.chain != "" {
			list = append(list, jump{chain: e.chain})
		}
	}
	return list, true
}

// jump is a chain that a packet may go to, and what is known of the packets that do.
type jump struct {
	chain string
	constraints
}
