package conntrack

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"ctguard/policy"
)

// statusLasting is what a purge spares: conversations that lasted, and everything with NAT.
const statusLasting = statusAssured | statusSrcNAT | statusDstNAT

// Parties are those whose entries a purge tells apart.
type Parties struct {
	Own    []netip.Prefix // this host's addresses
	Inside []netip.Prefix // networks that it forwards for
	Spared []netip.Prefix // who keeps everything
}

// Purge deletes the entries of a class that are neither assured nor translated, nor from a source that is spared, and
// with p.Local only those to this host itself: what a flood from spoofed addresses left at a local
// service. An entry is of the class when its original tuple has the protocol and the destination port; port 0 means
// any, and protocols without ports. So is an answer of this host's own to somebody who is not spared that came when the
// question's entry was gone: nobody answers that. Only the bits IPS_SEEN_REPLY, IPS_ASSURED, IPS_SRC_NAT and
// IPS_DST_NAT of the status count (include/uapi/linux/netfilter/nf_conntrack_common.h).
//
// With p.Passing it is, instead of p.Local or besides, what others asked each other, or asked p.To, and was answered,
// untranslated, but not what inside hosts asked; with p.Translated what was translated to an inside host and answered.
// A pass saw it p.Unfinished ago or longer, and the next packet of who asked makes the same entry again. What has a
// helper or an entry for life, or was given another source, stays. Of handshakes it is those that wait for nothing but
// the last ACK, which makes the entry again.
//
// A question without an answer and a TCP handshake under way go when a pass saw them p.Unfinished ago or longer: an
// answer that finds no entry makes one of its own, or is refused by a filter. With p.Handshakes it is only TCP
// handshakes, and a pass that comes sooner deletes nothing. What synproxy opened stays: who asked has answered already.
//
// It is one pass over the table with deletions beside it, as many per second as r allows, nil for no bound.
// The kernel leaves out of it what lasts. One filtered flush would do for a third of the CPU, but can
// spare nobody. When ctx ends or the kernel fails, Purge returns what was deleted until then beside the
// error.
func (t *Table) Purge(
	ctx context.Context, p policy.Purge, of Parties, r *rate.Limiter,
) (deleted int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	look := t.looks.at(p)
	if !look.begin(time.Now(), p.Unfinished, t.room()) && p.Handshakes {
		return 0, nil
	}
	take := sweep{p, addressOf(p.To), newPrefixSet(of.Own), newPrefixSet(of.Inside), newPrefixSet(of.Spared), look}
	deleted, err = t.change(ctx, msgDelete, r, func(queue *changes) error {
		_, err := t.walk(ctx, take.part(), 0, func(e *entry) bool { return !take.takes(e) || queue.delete(e) })
		return err
	})
	if err != nil {
		err = fmt.Errorf("purge %v: %w", p.Class, err)
	}
	return deleted, err
}

// sweep is what one pass of a purge takes.
type sweep struct {
	policy.Purge
	to                  address
	own, inside, spared prefixSet
	look                *underWay
}

// part says which entries may be taken.
func (s sweep) part() part {
	p := part{lacks: statusLasting}
	if s.Translated {
		p.lacks = statusAssured | statusSrcNAT
	}
	if !s.Local && (s.Passing || s.Translated) {
		p.has = statusSeenReply
	}
	return p
}

// takes says whether e is to be deleted.
func (s sweep) takes(e *entry) bool {
	forwarded := s.Passing || s.Translated
	switch {
	case e.proxied:
		return false
	case forwarded && e.isOf(s.Class) && s.passes(e):
		return !s.spared.contains(e.orig.src) && s.look.again(e)
	case forwarded && !s.Local:
		return false
	case e.status&statusLasting != 0 || s.Handshakes && !e.handshake():
		return false
	case e.isOf(s.Class):
		if s.Local && !s.own.contains(e.orig.dst) || s.spared.contains(e.orig.src) {
			return false
		}
	case !e.answers(s.Class) || !s.own.contains(e.orig.src) || s.spared.contains(e.orig.dst):
		return false
	}
	return s.Unfinished == 0 || !e.handshake() && e.status&statusSeenReply != 0 || s.look.again(e)
}

// passes says whether e is forwarded, was answered, and neither lasts nor depends on its entry. What an inside host
// asked does: what comes to it from outside is let in by that.
func (s sweep) passes(e *entry) bool {
	const stays = statusAssured | statusSrcNAT | statusKept
	if e.status&(stays|statusSeenReply) != statusSeenReply || e.helped || s.Handshakes && e.state != tcpSynRecv ||
		s.own.contains(e.orig.src) {
		return false
	}
	if e.status&statusDstNAT != 0 {
		return s.Translated && s.own.contains(e.orig.dst)
	}
	return s.Passing && !e.translated() && !s.own.contains(e.orig.dst) && !s.inside.contains(e.orig.src) &&
		(!s.To.IsValid() || e.orig.dst == s.to)
}

// isOf says whether e is of a class.
func (e *entry) isOf(class policy.FlowClass) bool {
	return e.orig.proto == class.Protocol && (class.Port == 0 || e.orig.dstPort == class.Port)
}

// answers says whether e was made by an answer from the port of a class, and nobody has spoken to that since.
func (e *entry) answers(class policy.FlowClass) bool {
	return e.orig.proto == class.Protocol && class.Port != 0 && e.orig.srcPort == class.Port &&
		e.status&statusSeenReply == 0
}

// handshake says whether e is a TCP handshake under way.
func (e *entry) handshake() bool {
	return e.protoInfo == protoInfoTCP && (e.state == tcpSynSent || e.state == tcpSynRecv)
}
