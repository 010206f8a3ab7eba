// Package scalebench measures how an agent at work grows with what it guards: entries in the table, sources that it
// limits, services, sockets, and network namespaces. Each is varied alone, with the real program on a real table.
//
//	bench.go  what is varied, and one run of the agent
//	host.go   a namespace with so many entries, services and sockets
//	report.go the table, and the chart
//
// An agent is started twice: in calm, with a quarter of the capacity in use, and with the table nearly full of sources
// that hold too much, which costs nothing else on the machine. The capacity is that of the agent's configuration.
// Their conversations can't be evicted, as nothing is known of an ordinary day, so the agent goes on looking.
//
// What a caller can get wrong: it needs root, the initial namespace, four million entries' memory (2 GiB) and a
// machine that is otherwise idle. What is changed for all namespaces is put back by package guardian.
package scalebench
