// Package conntrackbench measures agent/conntrack against what else reads and thins the conntrack
// table: a dump that nobody looks at, the library ti-mo/conntrack and the program conntrack(8). It
// works in a network namespace of its own, on a table that it fills; what it must change for all
// namespaces, nf_conntrack_max, it puts back.
//
// What a caller can get wrong: it needs root, the initial namespace to raise nf_conntrack_max, about
// 3 GiB of memory for the library's dump, and a machine that is otherwise idle. Ratios mean
// something on any machine, times only on this one.
package conntrackbench
