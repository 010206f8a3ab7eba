package audit

import "slices"

// The kinds of findings.
const (
	NotRead            ID = "not-read"
	NotLoaded          ID = "not-loaded"
	WrongNamespace     ID = "wrong-namespace"
	Fill               ID = "fill"
	Peak               ID = "peak"
	Refused            ID = "refused"
	EarlyDrops         ID = "early-drops"
	LostRaces          ID = "lost-races"
	Restarts           ID = "search-restarts"
	Uncollected        ID = "uncollected"
	NoOrdinaryDay      ID = "no-ordinary-day"
	MaxLow             ID = "max-low"
	MaxHigh            ID = "max-high"
	Buckets            ID = "buckets"
	TimeoutEstablished ID = "timeout-established"
	TimeoutLong        ID = "timeout-long"
	TimeoutShort       ID = "timeout-short"
	TimeoutAdvice      ID = "timeout-advice"
	Loose              ID = "tcp-loose"
	Liberal            ID = "tcp-be-liberal"
	MaxRetrans         ID = "tcp-max-retrans"
	SettingLost        ID = "setting-lost"
	SettingUnknown     ID = "setting-unknown"
	ModuleLate         ID = "module-late"
	Idle               ID = "idle"
	OldTimeout         ID = "old-timeout"
	HalfOpen           ID = "half-open"
	Unreplied          ID = "unreplied"
	OwnTraffic         ID = "own-traffic"
	Invalid            ID = "invalid"
	DropInvalid        ID = "drop-invalid"
	OneWay             ID = "one-way"
	Notrack            ID = "notrack"
	Candidates         ID = "notrack-candidates"
	HelperAuto         ID = "helper-auto"
	HelperUsed         ID = "helper-used"
	HelperLoaded       ID = "helper-loaded"
	NAT                ID = "nat"
	PortsLeft          ID = "ports-left"
	LegacyAndNft       ID = "legacy-and-nft"
	Owner              ID = "owner"
	SavedRuleset       ID = "saved-ruleset"
)

// Kind describes a kind of finding.
type Kind struct {
	ID    ID
	Worst Severity // the greatest severity that such a finding has
	Says  string   // what it is about, for the documents
}

// Catalogue lists every kind of finding that [Judge] may return.
func Catalogue() []Kind { return slices.Clone(catalogue) }

var catalogue = []Kind{
	{NotRead, Warning, "something could not be looked at, so it is not judged"},
	{NotLoaded, Info, "this namespace has no connection tracking"},
	{WrongNamespace, Warning, "the table is empty here while another network namespace has entries"},
	{Fill, Critical, "the table is fuller than three quarters; critical from nine tenths on"},
	{Peak, Warning, "the most entries seen, and half as many again, do not fit"},
	{Refused, Critical, "the kernel refused new connections because the table was full; critical while it does"},
	{EarlyDrops, Warning, "the kernel threw unanswered entries out to make room"},
	{LostRaces, Info, "packets of one flow raced each other into the table"},
	{Restarts, Info, "lookups that had to begin anew because the hash table moved below them"},
	{Uncollected, Info, "the count has expired or dying entries that a listing has not"},
	{NoOrdinaryDay, Warning, "the table is always so full that ctguard can't learn what is ordinary here"},
	{MaxLow, Warning, "the limit is below what the kernel itself gives a machine of this memory"},
	{MaxHigh, Warning, "a full table takes more than a quarter of the memory"},
	{Buckets, Warning, "more than four entries a bucket when the table is full"},
	{TimeoutEstablished, Warning, "silent connections are kept for days; a warning where they fill the table"},
	{TimeoutLong, Warning, "another timeout is longer than the kernel's default"},
	{TimeoutShort, Warning, "a timeout is so short that living connections lose their entry"},
	{TimeoutAdvice, Info, "the shorter timeouts that are usually advised, and what they are worth"},
	{Loose, Info, "whether connections are picked up in the middle"},
	{Liberal, Info, "whether packets outside of the TCP window are taken"},
	{MaxRetrans, Info, "how many packets sent again shorten an entry's life"},
	{SettingLost, Warning, "a file sets a value that the running kernel does not have"},
	{SettingUnknown, Warning, "a file sets something that this kernel does not know"},
	{ModuleLate, Warning, "settings are applied at boot before the module that they are for is there"},
	{Idle, Warning, "established connections without a packet for an hour or more, and who holds them"},
	{OldTimeout, Info, "established connections whose entries live by a longer timeout than the one in force"},
	{HalfOpen, Warning, "many handshakes that are not finished"},
	{Unreplied, Warning, "most of the entries never saw an answer"},
	{OwnTraffic, Warning, "entries of what this host says to itself"},
	{Invalid, Warning, "packets that conntrack could not place, by the second"},
	{DropInvalid, Info, "whether a rule drops INVALID, and whether that is safe here"},
	{OneWay, Warning, "connections of which this host sees one direction only"},
	{Notrack, Info, "rules that leave traffic untracked"},
	{Candidates, Info, "traffic that needs no tracking, with the entries that would save"},
	{HelperAuto, Warning, "conntrack helpers are given to whatever uses their ports"},
	{HelperUsed, Info, "connections that a conntrack helper follows"},
	{HelperLoaded, Info, "conntrack helpers that are loaded and follow nothing"},
	{NAT, Info, "chains that translate, and the inside hosts with the most entries"},
	{PortsLeft, Critical, "more than half of the source ports towards a destination are used; critical from nine tenths"},
	{LegacyAndNft, Warning, "iptables-legacy and nftables both have rules"},
	{Owner, Info, "rules of ufw, firewalld, docker, kube-proxy, fail2ban or CrowdSec, and what those programs set"},
	{SavedRuleset, Warning, "a saved ruleset contains ctguard's own table"},
}
