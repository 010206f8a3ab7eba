// Package conntrack reads and thins the kernel's connection-tracking table of one network namespace.
//
// It exists because the table must be looked at while it is full and the host is short of
// everything: a whole [Table.Scan] costs hardly more than receiving the dump, allocates nothing per
// entry and holds a bounded amount of memory whatever the number of sources; a sampled one costs the
// same at a million entries as at a thousand. [Table.Evict] and [Table.Retime] change entries in
// batches beside the dump that finds them, [Table.Purge] leaves the finding to kernels that can, and
// [Table.Adopt] makes some. Everything speaks ctnetlink on raw netlink sockets
// (net/netfilter/nf_conntrack_netlink.c); nothing here decides anything.
//
// The files, each with one subject:
//
//	table.go     the open table: count, maximum, kernel counters
//	socket.go    a netlink socket and the messages of a request
//	walk.go      one dump, entry by entry
//	parse.go     one ctnetlink message to one entry
//	names.go     numbers of the kernel's interface, and where each comes from
//	scan.go      a dump to a census; sources.go counts sources on fixed memory
//	changes.go   creations, deletions and updates in batches: all that changes entries goes through it
//	evict.go     who goes; ranks.go in which order; selection.go what is freed because it goes untracked
//	comeback.go  whether what was evicted comes back and speaks
//	purge.go     what a flood from spoofed addresses left goes
//	retime.go    shorter timeouts for entries that exist; timeouts.go names them
//	adopt.go     entries for connections that lived untracked
//	prefixes.go  sets of prefixes
//	probe.go     what this kernel can do, tried in a throw-away namespace
//
// What a caller can get wrong:
//
//   - A [Table] belongs to the network namespace of the thread that opened it, not of the one that
//     uses it. Lock the thread (runtime.LockOSThread) around a switch of namespace and [Open].
//   - A dump is not atomic. An entry may be missed or seen twice; [policy.Census] says when the
//     kernel noticed. Counts of what was deleted are exact, for the kernel reports each failure.
//   - Evict after blocking, never before: the next packet makes the entry again.
//   - The count of the table includes expired entries that nobody has collected yet; any dump
//     collects those it meets, so a scan may lower the count by itself.
package conntrack
