// Package capabilities finds out what this kernel can do for ctguard, and which steps it can't do.
//
// Versions say nothing, for distributions port features back: everything is tried, in throw-away network
// namespaces, never on a table or a ruleset in use. It is not a part of package survey because the tests of
// nft and conntrack, which it probes, use that.
//
// What a caller can get wrong: making a namespace needs CAP_SYS_ADMIN; an error means that nothing was found
// out, not that the kernel can do nothing.
package capabilities
