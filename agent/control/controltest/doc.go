// Package controltest asks a control socket as a stranger would, without the client. Only tests import it.
//
// What a caller can get wrong: each request has a connection of its own, which counts at the server until it is
// closed.
package controltest
