package conntrack

import (
	"context"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"ctguard/policy"
)

// Retirement says what counts as finished.
type Retirement struct {
	// seconds by sysctl name, as they are in force: how long an entry has been silent is told from them
	Timeouts map[string]int
	Retimed  map[string]int // likewise, what a [Retiming] gave to entries that may be there still
	Silent   time.Duration  // how long an entry must have been silent; whole seconds count
	// the same for a closed connection whose far end still remembers the source port that NAT gave it; not less
	Ports time.Duration
	// this host's own services: an answered UDP question to one of them needs no entry
	Services []policy.Selector
	Local    func(netip.Addr) bool // whether an address is this host's own; nil means that none is
	// services whose handshakes synproxy answers now, as clients ask for them: those from before are not finished any more
	Proxied []netip.AddrPort
	// also what this host asked for and nobody answers: a pass of its own over unanswered entries
	Dead     bool
	Most     int            // entries of one pass, 0 for all
	Rate     *rate.Limiter  // changes per second, nil for no bound
	Progress *atomic.Uint64 // grows with each entry that goes while Retire runs; nil if nobody watches
}

// UDP ports of protocols in which a question has one answer and a mapping is not used again after it:
// DNS (RFC 1035, 4.2.1) and NTP (RFC 5905, 9.2).
const (
	portDNS = 53
	portNTP = 123
)

// statusKept is what never retires: what a helper announced, what hardware forwards and what has a
// lifetime of its own. Entries that have a helper themselves stay too.
const statusKept = statusExpected | statusFixedTimeout | statusOffload | statusHWOffload

// Retire lets the entries of conversations that are over go, whoever owns them, translated or not, and
// returns how many. They run out a second later, so nobody loses anything: the next packet of such a conversation, if
// there is one, renews its entry, or makes a new one by the same rules.
//
//   - TCP in TIME_WAIT, or closed by a reset. Where NAT chose a connection's source port and the far end closed first,
//     it is the far end that waits in TIME_WAIT: somebody else's connection that got this port now would be answered
//     for the old one, and stall for a second. So the port stays taken for as long as Ports says; RFC 5382, REQ-5,
//     asks a NAT for four minutes.
//   - ICMP and ICMPv6 echo that was answered
//   - UDP to the DNS and NTP ports that was answered, and is no stream; other UDP only where it went to one of this
//     host's own services, because behind a gateway an answered datagram may be a phone's or a tunnel's, which
//     waits to be called (RFC 4787, REQ-5)
//   - handshakes that were answered and not finished, where synproxy has taken their service over
//   - with Dead, SYNs of this host's own that nobody answers: their repetition makes a new entry
//
// A half-closed connection is not over: data may still go the other way.
//
// The kernel leaves out of the dump what was never answered, so a flood of such entries costs next to
// nothing. When ctx ends or the kernel fails, Retire returns how many it let go until then beside the error.
func (t *Table) Retire(ctx context.Context, r Retirement) (retired int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := newRetirer(r)
	retired, err = t.change(ctx, msgNew, r.Rate, func(queue *changes) error {
		if r.Progress != nil {
			queue.done = func(errand) { r.Progress.Add(1) }
		}
		visit := func(e *entry) bool { return !x.takes(e) || queue.end(e) && x.left != 0 }
		if _, err := t.walk(ctx, part{has: statusSeenReply}, 0, visit); err != nil || !r.Dead {
			return err
		}
		_, err := t.walk(ctx, part{lacks: statusSeenReply}, 0, visit)
		return err
	})
	if err != nil {
		err = fmt.Errorf("retire finished entries: %w", err)
	}
	return retired, err
}

// retirer is one retirement under way.
type retirer struct {
	*finished
	wantsDead bool
	left      int // how many more may go; below 0 for all
}

func newRetirer(r Retirement) *retirer {
	x := &retirer{newFinished(r), r.Dead, r.Most}
	if x.left == 0 {
		x.left = -1
	}
	return x
}

// takes says whether an entry is to run out, and counts it.
func (x *retirer) takes(e *entry) bool {
	if x.left == 0 || e.timeout <= lastSecond || !x.may(e) {
		return false
	}
	x.left--
	return true
}

// may says whether an entry is of those that run out.
func (x *retirer) may(e *entry) bool { return x.over(e) || x.wantsDead && x.dead(e) }

// finished recognizes entries of conversations that are over.
type finished struct {
	silence  silence
	silent   uint32 // seconds
	ports    uint32 // seconds
	services selection
	local    func(netip.Addr) bool
	proxied  map[netip.AddrPort]bool
}

func newFinished(r Retirement) *finished {
	local := r.Local
	if local == nil {
		local = func(netip.Addr) bool { return false }
	}
	proxied := make(map[netip.AddrPort]bool, len(r.Proxied))
	for _, s := range r.Proxied {
		proxied[s] = true
	}
	return &finished{silence: newSilence(r.Timeouts, r.Retimed), silent: uint32(r.Silent / time.Second),
		ports: uint32(r.Ports / time.Second), services: newSelection(r.Services, local), local: local, proxied: proxied}
}

// over says whether the conversation of an answered entry is over.
func (f *finished) over(e *entry) bool {
	if e.helped || e.status&statusSeenReply == 0 || e.status&statusKept != 0 || !f.silence.atLeast(e, f.silent) {
		return false
	}
	switch e.orig.proto {
	case protoTCP:
		return e.protoInfo == protoInfoTCP && (f.takenOver(e) || e.state == tcpClose ||
			e.state == tcpTimeWait && (!e.farEndWaits() || f.silence.atLeast(e, f.ports)))
	case protoICMP:
		return e.orig.icmpType == echoRequest
	case protoICMPv6:
		return e.orig.icmpType == echoRequestV6
	case protoUDP:
		if e.status&statusAssured != 0 {
			return false // a conversation, such as a tunnel on somebody else's port
		}
		return e.orig.dstPort == portDNS || e.orig.dstPort == portNTP || !e.translated() && f.services.holds(e)
	}
	return false
}

// takenOver says whether e is a handshake under way with a service whose handshakes are answered by synproxy now.
func (f *finished) takenOver(e *entry) bool {
	return len(f.proxied) > 0 && !e.proxied && e.orig.proto == protoTCP && e.protoInfo == protoInfoTCP &&
		e.state == tcpSynRecv && f.proxied[netip.AddrPortFrom(e.orig.dst.netip(), e.orig.dstPort)]
}

// farEndWaits says whether the other end of a connection in TIME_WAIT holds on to a source port that NAT chose: unless
// it is known that the near end closed first, which then waits itself (RFC 9293, 3.6).
func (e *entry) farEndWaits() bool {
	orig, _ := e.tcpFlags()
	return e.status&statusSrcNAT != 0 && orig&tcpClosesFirst == 0
}

// dead says whether e is a SYN of this host's own that nobody answers.
func (f *finished) dead(e *entry) bool {
	return e.orig.proto == protoTCP && e.protoInfo == protoInfoTCP && e.state == tcpSynSent && !e.helped &&
		e.status&(statusKept|statusSeenReply) == 0 && f.silence.atLeast(e, f.silent) && f.local(e.orig.src.netip())
}
