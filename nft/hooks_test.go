package nft

import (
	"encoding/binary"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables/binaryutil"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// queue is a program that packets wait for; see include/uapi/linux/netfilter/nfnetlink_queue.h.
type queue struct {
	t    *testing.T
	conn *netlink.Conn
}

const (
	queueVerdict   = unix.NFNL_SUBSYS_QUEUE<<8 | 1
	queueConfig    = unix.NFNL_SUBSYS_QUEUE<<8 | 2
	attrCommand    = 1
	attrParameters = 2
	attrPacket     = 1
	attrVerdict    = 2
	commandBind    = 1
	copyMeta       = 1
	verdictAccept  = 1
	nfgenmsgLength = 4
)

// newQueue binds queue 0 of the test's namespace.
func newQueue(t *testing.T) *queue {
	t.Helper()
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	q := &queue{t, conn}
	q.send(queueConfig, netlink.Attribute{Type: attrCommand, Data: []byte{commandBind, 0, 0, unix.AF_INET}})
	q.send(queueConfig, netlink.Attribute{Type: attrParameters, Data: []byte{0, 0, 0, 0, copyMeta}})
	return q
}

// send sends a message about queue 0.
func (q *queue) send(kind netlink.HeaderType, a netlink.Attribute) {
	q.t.Helper()
	data, err := netlink.MarshalAttributes([]netlink.Attribute{a})
	if err == nil {
		_, err = q.conn.Send(netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request},
			Data: append(make([]byte, nfgenmsgLength), data...)})
	}
	if err != nil {
		q.t.Fatal(err)
	}
}

// next waits for a packet and returns what the kernel calls it.
func (q *queue) next() uint32 {
	q.t.Helper()
	if err := q.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		q.t.Fatal(err)
	}
	messages, err := q.conn.Receive()
	if err != nil || len(messages) != 1 {
		q.t.Fatalf("%d packets: %v", len(messages), err)
	}
	attributes, err := netlink.UnmarshalAttributes(messages[0].Data[nfgenmsgLength:])
	if err != nil || attributes[0].Type != attrPacket {
		q.t.Fatalf("%v: %v", attributes, err)
	}
	return binary.BigEndian.Uint32(attributes[0].Data)
}

// accept lets a packet go on.
func (q *queue) accept(id uint32) {
	q.t.Helper()
	q.send(queueVerdict, netlink.Attribute{Type: attrVerdict,
		Data: append(binaryutil.BigEndian.PutUint32(verdictAccept), binaryutil.BigEndian.PutUint32(id)...)})
}

// waiting is how many packets wait.
func waiting(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(queues)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(text))[2]
}

// TestHooksStayWherePacketsWait: a hook that goes takes every packet along that waits for a program, so where there is
// such a program none of ours goes.
func TestHooksStayWherePacketsWait(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	q := newQueue(t)
	run(t, "iptables-legacy -A INPUT -p udp --dport 80 -j NFQUEUE --queue-num 0")
	table := open(t)
	d := untrack("tcp/80", "udp/80")
	apply(t, table, d)
	c := l.mustDial("udp", client2, 80)
	ask := func() uint32 {
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		return q.next()
	}
	id := ask()
	d.Posture.Uncounted = true
	apply(t, table, d)
	apply(t, table, Desired{Posture: policy.Posture{Notrack: tracked(policy.Watched, "tcp/80"), Uncounted: true}})
	if got := waiting(t); got != "1" {
		t.Fatalf("%s packets wait after hooks had nothing to do any more, want 1", got)
	}
	q.accept(id)
	c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 16)); err != nil {
		t.Errorf("what had waited: %v", err)
	}

	// The kernel is as this package takes it to be.
	feed(t, "table inet other { chain input { type filter hook input priority 1; }; }")
	ask()
	run(t, "nft delete table inet other")
	if got := waiting(t); got != "0" {
		t.Errorf("%s packets wait after somebody's hook went, want 0: holdHooks need not hold any", got)
	}
}
