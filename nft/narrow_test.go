package nft

import "testing"

// What this host sends to somebody behind a small MTU is tracked for a moment, so that the errors that say so are
// related to it. Nothing else is, a flood's segments neither.
func TestNarrowPaths(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	table := open(t)
	apply(t, table, untrack("tcp/80"))
	far, near := l.mustDial("tcp", client2, 80), l.mustDial("tcp", client3, 80)
	mustEcho(t, far)
	mustEcho(t, near)
	wantEntries(t, client2, 0)
	l.tooBig(client2, 80)
	work(t, table) // finds that somebody said so
	apply(t, table, untrack("tcp/80"))
	mustEcho(t, far)
	mustEcho(t, near)
	wantEntries(t, hostV4, 1)
	wantEntries(t, client3, 0)
	wantEntries(t, client2, 0)

	for _, flags := range []byte{0x02, 0x10} { // SYN, ACK: answered by SYN-ACK and RST
		l.segment(client2, 80, flags)
	}
	mustEcho(t, near) // what came before it has been through
	wantEntries(t, hostV4, 1)
	mustEcho(t, far)
}
