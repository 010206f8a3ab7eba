package nft

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// withinRate matches while the source, folded to a number of bits, stays below the rate. It does not
// match when the meter has no room for one more source, so what follows it fails closed.
func withinRate(meter addressSet, bits, perSecond, burst int) statement {
	key := source.loadAddr(meter.v6)
	if length := meter.bits(); bits < length {
		mask := net.CIDRMask(bits, length)
		addr, _ := netip.AddrFromSlice(mask)
		key.text += " & " + addr.String()
		key.exprs = append(key.exprs, masked(mask))
	}
	rate := &expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(perSecond), Unit: expr.LimitTimeSecond,
		Burst: uint32(burst)}
	key.text = fmt.Sprintf("update @%s { %s limit rate %d/second burst %d packets }", meter.name, key.text, perSecond,
		burst)
	key.exprs = append(key.exprs, &expr.Dynset{SrcRegKey: reg, SetName: meter.name,
		Operation: unix.NFT_DYNSET_OP_UPDATE, Exprs: []expr.Any{rate}})
	return key
}

// aboveRate matches what comes faster than a rate, after a second's worth.
func aboveRate(perSecond int) statement { return aboveRateAndBurst(perSecond, perSecond) }

func aboveRateAndBurst(perSecond, burst int) statement {
	return statement{
		text: fmt.Sprintf("limit rate over %d/second burst %d packets", perSecond, burst),
		exprs: []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(perSecond), Over: true,
			Unit: expr.LimitTimeSecond, Burst: uint32(burst)}},
	}
}

// synproxy answers a SYN with a cookie in this host's place, and opens the connection when the cookie comes
// back.
func synproxy(h policy.Handshake, v6 bool) []statement {
	family, name, mss := uint8(unix.NFPROTO_IPV4), "ipv4", h.MSS4
	if v6 {
		family, name, mss = unix.NFPROTO_IPV6, "ipv6", h.MSS6
	}
	text := fmt.Sprintf("synproxy mss %d wscale %d", mss, h.WindowScale)
	if h.Timestamps {
		text += " timestamp"
	}
	if h.SACK {
		text += " sack-perm"
	}
	return []statement{
		{text: "meta nfproto " + name, family: family},
		protocol(unix.IPPROTO_TCP),
		{text: text, l4: unix.IPPROTO_TCP, exprs: []expr.Any{&expr.SynProxy{
			Mss: mss, MssValueSet: true, Wscale: h.WindowScale, WscaleValueSet: true, Timestamp: h.Timestamps, SackPerm: h.SACK,
		}}},
	}
}

// count adds to a named counter, which keeps its value when the rule is replaced.
func count(counter string) statement {
	return statement{text: fmt.Sprintf("counter name %q", counter),
		exprs: []expr.Any{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: counter}}}
}

func notrack() statement { return statement{text: "notrack", exprs: []expr.Any{&expr.Notrack{}}} }

func drop() statement { return verdict("drop", expr.VerdictDrop, "") }

func back() statement { return verdict("return", expr.VerdictReturn, "") }

func jump(chain string) statement { return verdict("jump "+chain, expr.VerdictJump, chain) }

func goTo(chain string) statement { return verdict("goto "+chain, expr.VerdictGoto, chain) }

func verdict(text string, kind expr.VerdictKind, chain string) statement {
	return statement{text: text, exprs: []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}}
}

// resetTCP answers TCP with a reset.
func resetTCP() statement {
	return statement{text: "meta l4proto tcp reject with tcp reset", l4: unix.IPPROTO_TCP,
		exprs: []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}}
}

// reject answers with ICMP or ICMPv6 port unreachable.
func reject() statement {
	return statement{text: "reject", exprs: []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH,
		Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}}}
}
