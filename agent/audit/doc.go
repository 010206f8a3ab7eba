// Package audit compares a host with what is usually advised against a full conntrack table: its limits, its
// settings, its rules and what its table holds.
//
// [Reader] gathers [Facts] and changes nothing; [Judge] turns them into findings and reads nothing, so every
// finding can be tried with facts that no host at hand has. The files:
//
//	finding.go    what a finding is; catalogue.go lists all that there are
//	facts.go      what is known of a host
//	read.go       the reader; walk.go its pass over the table, rules.go nftables, legacy.go what nft does not
//	              show, files.go what is configured for the next boot
//	fill.go       count, limit and counters       size.go      limit, memory and buckets
//	timeouts.go   timeouts and TCP's switches     settings.go  files against the running kernel
//	stuck.go      entries of nobody               invalid.go   INVALID and one-way routes
//	notrack.go    what is, or could be, untracked helpers.go   conntrack helpers
//	nat.go        inside hosts and source ports   owners.go    other programs' rules
//	namespace.go  the wrong network namespace     dropin.go    the advice as files
//
// What a caller can get wrong: everything is read from the network namespace of the calling thread.
package audit
