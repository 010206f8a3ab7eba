// Package nft makes the table inet ctguard from a posture and reads its counters back.
//
// [Table.Apply] takes the whole desired state any number of times. The package keeps a copy of what
// it put into the kernel, sends the difference as one atomic batch, and sends nothing when there is
// none. When a batch fails or the table is no longer what it should be, the next batch deletes and
// makes the whole table. [Render] prints the same ruleset in nft's syntax without touching the
// kernel: both come from one description, so the plan an operator reads is the plan that is applied.
//
// The table has the flag owner wherever the kernel knows it: it belongs to the socket that [Open]
// made, nobody else can change or delete it, and the kernel removes it when the process ends,
// however it ends.
//
// Every packet of the host passes the base chains, so one is there only while it has a rule, and the first rules are
// those that most packets need. Hooks stay where packets wait for a program, see holdHooks:
//
//	early       prerouting, before raw and conntrack: blocks, meters TCP SYN, leaves safe traffic untracked, drops what
//	            no socket waits for
//	late        prerouting, after conntrack: drops INVALID, meters every other packet that opens a flow, and where
//	            conntrack zones are in use all that do, each in its zone
//	outgoing    output, before raw and conntrack: leaves the answers to safe traffic untracked
//	cookies     input, first: takes the cookies that synproxy handed out
//	passed_in   input, last: counts safe traffic that the host's own rules let in, answers SYNs with cookies
//	passed_out  output, last: counts answers that the host's own rules let out
//	through     forward, last: counts what the host's own rules let through to inside hosts
//	behind      postrouting, where conntrack translates answers: translates those that are untracked
//
// What becomes of the packets of selectors is counted only in looks ([policy.Posture].Uncounted says when not). Between
// them plain services go untracked by sets of ports, the cheapest of all lookups.
//
// What a caller can get wrong: a [Table] belongs to one goroutine at a time; it works in the network
// namespace that [Open] was called in, whatever the calling thread's namespace is later; the netlink
// library panics when the socket's descriptor is 1024 or more, so call Open early. A limit's end is
// exact when the limit is new or shortened; an end that moves on is carried to the kernel only when
// the element would otherwise end noticeably early, see [Table.Apply].
package nft
