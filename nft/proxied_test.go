package nft

import (
	"ctguard/policy"
)

// cookieServices are a service of hostRules, and one of some clients that are not asked by way of an interface.
var (
	cookieServices = []policy.Selector{selector(forwards[0]),
		selector("tcp/25 with 198.51.100.0/24 at 203.0.113.1/32 to 10.0.0.3:25 by wan0")}
	cookieMSS = map[policy.Selector]uint16{cookieServices[0]: 1452, cookieServices[1]: 1400}
)
