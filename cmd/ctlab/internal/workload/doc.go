// Package workload is the ordinary users: what they ask for, and what they got.
//
// It runs as a role in the clients' namespace with real sockets: new HTTP
// connections and UDP requests at a steady rate from a set of addresses, lasting
// connections that ask for a line each second or only listen to what the server
// says by itself, and one session that stays silent through the attack and is
// used again after it. Everything is recorded against the scenario's common
// clock; the arithmetic is package measure's.
package workload
