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

// changes sends deletes or updates in batches and learns what became of each. The requests ask for
// no acknowledgement: the kernel then answers failures only, so what was sent and not answered is
// done. It works on a batch within the send, so all answers wait when that returns.
type changes struct {
	ctx     context.Context
	socket  *socket
	kind    uint16        // msgDelete or msgNew
	rate    *rate.Limiter // changes per second, or nil
	limit   int           // changes per batch
	batch   []byte
	owners  []int32 // whose each change of the batch is
	answers []byte

	done    func(owner int32)                   // called for each change that was made
	failed  func(owner int32, errno unix.Errno) // called for each that was refused
	skipped func(owner int32)                   // called for each that was never sent
	err     error                               // the first error; nothing is sent after it
	refused map[int]unix.Errno                  // by position in the batch
}

// newChanges opens a queue of changes to t's table. The caller sets the callbacks and closes it.
func (t *Table) newChanges(ctx context.Context, kind uint16, r *rate.Limiter) (*changes, error) {
	s, err := t.dial()
	if err != nil {
		return nil, err
	}
	c := &changes{
		ctx: ctx, socket: s, kind: kind, rate: r, limit: batchSize,
		batch:   make([]byte, 0, batchSize*(headerLen+familyLen+recordBytes)),
		owners:  make([]int32, 0, batchSize),
		answers: make([]byte, 4<<10),
		refused: make(map[int]unix.Errno),
	}
	if r != nil && r.Limit() != rate.Inf {
		c.limit = min(batchSize, r.Burst())
	}
	return c, nil
}

// add queues one change: attributes that name the entry and, for an update, say what is new.
func (c *changes) add(owner int32, family uint8, attributes ...[]byte) {
	if c.err != nil || c.limit <= 0 {
		c.skipped(owner)
		return
	}
	start := len(c.batch)
	c.batch = appendMessage(c.batch, c.kind, 0, uint32(len(c.owners)), family, 0)
	for _, a := range attributes {
		c.batch = append(c.batch, a...)
	}
	closeMessage(c.batch, start)
	c.owners = append(c.owners, owner)
	if len(c.owners) >= c.limit {
		c.flush()
	}
}

// flush sends what is queued, no sooner than the rate allows, and hands out what became of it.
func (c *changes) flush() {
	if len(c.owners) == 0 {
		return
	}
	defer func() { c.batch, c.owners = c.batch[:0], c.owners[:0] }()
	if c.rate != nil {
		if err := c.rate.WaitN(c.ctx, len(c.owners)); err != nil {
			c.err = fmt.Errorf("wait for the budget of changes: %w", err)
		}
	}
	if c.err == nil {
		c.err = c.socket.send(c.batch)
	}
	if c.err != nil {
		for _, owner := range c.owners {
			c.skipped(owner)
		}
		return
	}
	clear(c.refused)
	c.readAnswers()
	for i, owner := range c.owners {
		if errno, ok := c.refused[i]; ok {
			c.failed(owner, errno)
		} else {
			c.done(owner)
		}
	}
}

// readAnswers collects the failures of the batch that was just sent.
func (c *changes) readAnswers() {
	for {
		datagram, err := c.socket.receive(c.answers, unix.MSG_DONTWAIT)
		if isTimeout(err) {
			return
		}
		if err != nil {
			c.err = fmt.Errorf("read answers of ctnetlink: %w", err)
			return
		}
		for len(datagram) > 0 {
			var m message
			if m, datagram, err = nextMessage(datagram); err != nil {
				c.err = fmt.Errorf("read answers of ctnetlink: %w", err)
				return
			}
			if m.kind == unix.NLMSG_ERROR && m.errorCode() != 0 {
				c.refused[int(m.seq)] = m.errorCode()
			}
		}
	}
}

// close sends the rest and returns the first error.
func (c *changes) close() error {
	c.flush()
	c.socket.close()
	return c.err
}

// vanished says whether a change failed because its entry is gone: ENOENT for an entry that is not
// in the table, ETIME for one that is just dying.
func vanished(errno unix.Errno) bool { return errno == unix.ENOENT || errno == unix.ETIME }

// timeoutAttr is CTA_TIMEOUT with room for its value.
func timeoutAttr(b []byte, seconds uint32) []byte {
	return appendAttr(b[:0], attrTimeout, binary.BigEndian.AppendUint32(nil, seconds)...)
}
