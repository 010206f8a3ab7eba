// Package service is what the protected host offers: HTTP on port 80, a line
// echo on ports 22 and 7000, lines that nobody asked for on port 7001, a
// sink for streams on port 7002, a UDP echo on port 5353, and where it is asked for the far end of a tunnel on port
// 4789.
//
// It is written on epoll and batched system calls, because it has to live through
// tens of thousands of held connections and datagrams on a small machine: what
// the lab measures is the connection-tracking table, not this server. One thread
// serves all of TCP; nothing is allocated per connection.
package service
