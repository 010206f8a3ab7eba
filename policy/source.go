package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Source is who opens flows: an address, or a network, in a zone of the table. Two tenants may have one address, each
// in a zone of its own.
type Source struct {
	Prefix netip.Prefix
	Zone   uint16 // conntrack zone, 0 for the default one
}

// zoneWord stands between a prefix and its zone.
const zoneWord = " zone "

// named adds the zone to what a source is called; the default zone needs no name.
func (s Source) named(name string) string {
	if s.Zone == 0 {
		return name
	}
	return fmt.Sprint(name, zoneWord, s.Zone)
}

// String names the source, as in "192.0.2.10/32 zone 5".
func (s Source) String() string { return s.named(s.Prefix.String()) }

// Short is String, with a prefix that is one address written as that address.
func (s Source) Short() string {
	if s.Prefix.IsSingleIP() {
		return s.named(s.Prefix.Addr().String())
	}
	return s.String()
}

// MarshalText writes a source as its String does, to be a key of a JSON object.
func (s Source) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *Source) UnmarshalText(text []byte) error {
	name, number, zoned := strings.Cut(string(text), zoneWord)
	prefix, err := netip.ParsePrefix(name)
	zone := uint64(0)
	if err == nil && zoned {
		zone, err = strconv.ParseUint(number, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("%q is no source: %w", text, err)
	}
	*s = Source{prefix, uint16(zone)}
	return nil
}

// within returns the network of so many bits that the source is in, in its zone.
func (s Source) within(bits int) Source {
	return Source{netip.PrefixFrom(s.Prefix.Addr(), bits).Masked(), s.Zone}
}

// Compare orders sources by address, then by length, then by zone.
func (s Source) Compare(other Source) int {
	return cmp.Or(s.Prefix.Compare(other.Prefix), cmp.Compare(s.Zone, other.Zone))
}
