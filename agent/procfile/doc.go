// Package procfile reads files of /proc and /sys whole, with no more system calls than that takes.
//
// os.ReadFile asks Go's poller to wait for each file that it opens. A file of /proc has nothing to wait for, but the
// poller is woken for it, and so is a thread of the program. On a calm host that cost the agent more than what it read.
package procfile
