package conntrack

import (
	"context"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// batchSize is how many changes go to the kernel in one call. More gain nothing measurable, and the
// kernel holds other changes of the table up meanwhile.
const batchSize = 256

// changes sends creations, deletes or updates in batches and learns what became of each. The requests ask for
// no acknowledgement: the kernel then answers failures only, so what was sent and not answered is
// done. It works on a batch within the send, so all answers wait when that returns.
//
// While the kernel works on one batch, for another thread, the caller collects the next. Callbacks come from
// within add and close, on the caller's goroutine. What the kernel refused is as a rule gone by itself, or a flow
// that hardware forwards, which older kernels don't delete (EBUSY).
type changes struct {
	ctx     context.Context
	socket  *socket
	kind    uint16        // msgDelete or msgNew
	flags   uint16        // besides NLM_F_REQUEST
	rate    *rate.Limiter // changes per second, or nil
	limit   int           // changes per batch
	atOnce  bool          // delete also what a connection may begin over; see lastSecond
	errand  errand        // what the changes that are queued now are for
	current *batch        // what add collects
	work    chan *batch   // to the sender
	idle    chan *batch   // back from it
	answers []byte        // the sender's

	made   int                    // how many changes the kernel made of what the pass is for
	done   func(errand)           // called for each change that it made; nil if nobody watches
	failed func(errno unix.Errno) // called for each that was refused; nil if nobody minds
	err    error                  // the first error; nothing is sent after it
}

// errand is what a change is for, where one pass has several.
type errand uint8

const (
	own errand = iota // what the pass was begun for
	retiring
	retiming
)

// batch is changes that go to the kernel in one call, and then what became of them.
type batch struct {
	messages []byte
	n        int                // changes in messages
	errands  [batchSize]errand  // by position
	refused  map[int]unix.Errno // by position
	unsent   bool
	err      error
}

// change has fill put changes into a queue, sends them in batches no faster than r allows, and returns how many
// the kernel made, also beside an error. Whatever changes entries goes through here.
func (t *Table) change(
	ctx context.Context, kind uint16, r *rate.Limiter, fill func(*changes) error,
) (made int, err error) {
	queue, err := t.newChanges(ctx, kind, r)
	if err != nil {
		return 0, err
	}
	err = fill(queue)
	if closeErr := queue.close(); closeErr != nil {
		err = closeErr
	}
	return queue.made, err
}

// newChanges opens a queue of changes to t's table. The caller closes it.
func (t *Table) newChanges(ctx context.Context, kind uint16, r *rate.Limiter) (*changes, error) {
	s, err := t.dial()
	if err != nil {
		return nil, err
	}
	c := &changes{
		ctx: ctx, socket: s, kind: kind, rate: r, limit: batchSize, answers: make([]byte, 4<<10),
		current: newBatch(), work: make(chan *batch, 1), idle: make(chan *batch, 2),
	}
	c.idle <- newBatch()
	if r != nil && r.Limit() != rate.Inf {
		c.limit = min(batchSize, r.Burst())
	}
	go func() {
		defer close(c.idle)
		for b := range c.work {
			c.execute(b)
			c.idle <- b
		}
	}()
	return c, nil
}

func newBatch() *batch {
	return &batch{
		messages: make([]byte, 0, batchSize*(headerLen+familyLen+recordBytes)),
		refused:  make(map[int]unix.Errno),
	}
}

// add queues one change, attributes that name the entry and, for an update, say what is new. It says whether
// there is any use in more.
func (c *changes) add(family uint8, attributes ...[]byte) (more bool) {
	return c.addAs(c.kind, family, attributes...)
}

// addAs is add for a change of another kind.
func (c *changes) addAs(kind uint16, family uint8, attributes ...[]byte) (more bool) {
	if c.err != nil || c.limit <= 0 {
		return c.err == nil
	}
	b := c.current
	start := len(b.messages)
	b.messages = appendMessage(b.messages, kind, c.flags, uint32(b.n), family)
	for _, a := range attributes {
		b.messages = append(b.messages, a...)
	}
	closeMessage(b.messages, start)
	b.errands[b.n] = c.errand
	if b.n++; b.n >= c.limit {
		c.work <- b
		c.current = <-c.idle
		c.settle(c.current)
	}
	return c.err == nil
}

// lastSecond is what an entry over which a connection may begin again is left with, in seconds. To delete it would end
// a connection that begins with the same ports in the moment between the dump and the deletion: the kernel frees the
// old entry, takes the same memory for the new one, and so gives it the same id (tcp_in_window and nf_ct_get_id in
// net/netfilter/). A connection that begins sets its own time with its next packet, and repeats its SYN within this
// one if that is late (RFC 6298, 2).
const lastSecond = 1

var lastSecondAttr = timeoutAttr(nil, lastSecond)

// delete queues the deletion of an entry; one over which a connection may begin again runs out instead.
func (c *changes) delete(e *entry) (more bool) {
	if e.mayBeginAgain() && !c.atOnce {
		return c.end(e)
	}
	return c.add(e.family, e.bytes(e.tupleSpan), e.bytes(e.zoneSpan), e.bytes(e.idSpan))
}

// end has an entry run out.
func (c *changes) end(e *entry) (more bool) {
	return c.addAs(msgNew, e.family, e.bytes(e.tupleSpan), e.bytes(e.zoneSpan), lastSecondAttr)
}

// deleteRecord is delete for what is remembered of an entry.
func (c *changes) deleteRecord(r *record) {
	if r.mayBeginAgain && !c.atOnce {
		c.addAs(msgNew, r.family, r.attributes(), lastSecondAttr)
		return
	}
	c.add(r.family, r.attributes())
}

// close sends the rest, waits for all answers and returns the first error.
func (c *changes) close() error {
	c.work <- c.current
	close(c.work)
	for b := range c.idle {
		c.settle(b)
	}
	c.socket.close()
	return c.err
}

// settle tells the caller what became of a batch and empties it.
func (c *changes) settle(b *batch) {
	for i := range b.n {
		errno, refused := b.refused[i]
		switch {
		case b.unsent:
		case refused:
			if c.failed != nil {
				c.failed(errno)
			}
		default:
			if b.errands[i] == own {
				c.made++
			}
			if c.done != nil {
				c.done(b.errands[i])
			}
		}
	}
	if c.err == nil {
		c.err = b.err
	}
	clear(b.refused)
	*b = batch{messages: b.messages[:0], refused: b.refused}
}

// execute sends a batch, no sooner than the rate allows, and collects the failures. It runs on the
// sender's goroutine and touches nothing but the batch and the socket.
func (c *changes) execute(b *batch) {
	if b.n == 0 {
		return
	}
	if c.rate != nil {
		if err := c.rate.WaitN(c.ctx, b.n); err != nil {
			b.unsent, b.err = true, fmt.Errorf("wait for the budget of changes: %w", err)
			return
		}
	}
	if b.err = c.socket.send(b.messages); b.err != nil {
		b.unsent = true
		return
	}
	b.err = c.readAnswers(b)
}

func (c *changes) readAnswers(b *batch) error {
	for {
		datagram, err := c.socket.receive(c.answers, unix.MSG_DONTWAIT)
		if isTimeout(err) {
			return nil
		}
		for err == nil && len(datagram) > 0 {
			var m message
			m, datagram, err = nextMessage(datagram)
			if err == nil && m.kind == unix.NLMSG_ERROR && m.errorCode() != 0 {
				b.refused[int(m.seq)] = m.errorCode()
			}
		}
		if err != nil {
			return fmt.Errorf("read answers of ctnetlink: %w", err)
		}
	}
}

// timeoutAttr writes CTA_TIMEOUT over b.
func timeoutAttr(b []byte, seconds uint32) []byte {
	b = appendAttr(b[:0], attrTimeout, 0, 0, 0, 0)
	binary.BigEndian.PutUint32(b[attrLen:], seconds)
	return b
}
