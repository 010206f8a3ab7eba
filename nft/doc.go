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
// Base chains are made with the table and stay until it goes, because taking a hook away drops
// packets in flight. What changes is rules and set elements:
//
//	early       prerouting, before raw and conntrack: blocks, meters TCP SYN, drops what no socket waits for, leaves safe
//	            traffic untracked
//	late        prerouting, after conntrack: drops INVALID, meters every other packet that opens a flow
//	outgoing    output, before raw and conntrack: leaves the answers to safe traffic untracked
//	cookies     input, first: takes the cookies that synproxy handed out
//	passed_in   input, last: counts safe traffic that the host's own rules let in, answers SYNs with cookies
//	passed_out  output, last: counts answers that the host's own rules let out
//	through     forward, last: counts what the host's own rules let through to inside hosts; only once that is asked for
//	behind      postrouting, where conntrack translates answers: translates those that are untracked; likewise
//
// What a caller can get wrong: a [Table] belongs to one goroutine at a time; it works in the network
// namespace that [Open] was called in, whatever the calling thread's namespace is later; the netlink
// library panics when the socket's descriptor is 1024 or more, so call Open early. A limit's end is
// exact when the limit is new or shortened; an end that moves on is carried to the kernel only when
// the element would otherwise end noticeably early, see [Table.Apply].
package nft
