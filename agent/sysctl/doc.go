// Package sysctl reads and changes the conntrack settings of one network namespace, and puts each
// one back.
//
// A [Settings] knows where a setting is to be found under its several names. A [Keeper] brings
// settings to what is wanted: it writes the first value of each to a journal on disk, synced,
// before it changes anything, so that the administrator's values come back after a crash too
// ([Keeper.Revert]). A value that somebody else wrote meanwhile is theirs and stays.
//
// What a caller can get wrong: /proc/sys/net shows the namespace of the thread that opens a file,
// so open a Settings on a thread that is in the right one.
package sysctl
