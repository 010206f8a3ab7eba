package nft

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Name is the table's name; its family is inet.
const Name = "ctguard"

// ErrOwned means that the table belongs to another process that is running: only that process can
// change or delete it, and the kernel removes it when that process ends.
var ErrOwned = errors.New("table inet " + Name + " belongs to a running process")

// Table is the table inet ctguard and the socket that owns it. It is for one goroutine at a time.
type Table struct {
	conn    *nftables.Conn
	socket  socket
	unowned bool
	have    *ruleset // what is in the kernel; nil while there is no table
	keep    retained // what the next ruleset must keep as long as this table lives
	broken  bool     // have may not be what is in the kernel: delete and make everything anew
	strays  strays
	tooLong uint64 // errors that said that packets need to be smaller, when they were last counted
	foreign uint64 // how often somebody else's change of a ruleset was seen
	checked uint32 // the generation of the kernel's ruleset in which have was known to be true; 0 for none
}

// Option changes how [Open] works.
type Option func(*options)

type options struct {
	netns   int
	unowned bool
}

// InNetNS makes the table in the network namespace that a descriptor refers to, instead of the
// calling thread's.
func InNetNS(fd int) Option { return func(o *options) { o.netns = fd } }

// Unowned makes the table without the flag owner, for kernels that lack it; see [Capabilities].
func Unowned() Option { return func(o *options) { o.unowned = true } }

// Open makes the socket that the table will belong to. It writes nothing.
func Open(opts ...Option) (*Table, error) {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	t := &Table{unowned: o.unowned}
	how := []nftables.ConnOption{nftables.AsLasting(), nftables.WithSockOptions(t.socket.take)}
	if o.netns != 0 {
		how = append(how, nftables.WithNetNSFd(o.netns))
	}
	conn, err := nftables.New(how...)
	if err != nil {
		return nil, fmt.Errorf("open nftables socket: %w", err)
	}
	t.conn = conn
	return t, nil
}

// Apply brings the table to what is desired, and removes it when nothing is. It may be called any
// number of times and writes only what differs; when nothing does it makes no system call. Each
// change is one atomic batch. Limits that have ended by now are left out; the others end in the
// kernel by themselves. An end that moves by less than an eighth of the time left is not written: a
// caller that moves the ends on with every tick would otherwise rewrite every element every time.
//
// The error is [ErrOwned] when another process owns the table. After any error the next Apply makes
// the whole table anew.
func (t *Table) Apply(d Desired, now time.Time) (err error) {
	defer t.socket.asks(changeWithin)(&err)
	if err := d.validate(); err != nil {
		return err
	}
	if !d.Posture.HasRules() {
		return t.remove()
	}
	if t.have != nil && !t.broken && len(t.keep.zones) <= mostZones {
		if err := t.update(d, now); err == nil {
			return nil
		}
		// Somebody else removed something, or an element ended while it was being renewed.
	}
	return t.rebuild(d, now)
}

// update writes the difference between have and d.
func (t *Table) update(d Desired, now time.Time) error {
	t.holdHooks()
	want := d.ruleset(now, &t.keep)
	b := newBatch(t.conn, t.unowned)
	b.change(t.have, &want, now)
	if b.empty() {
		t.have = &want
		return nil
	}
	return t.commit(b, &want)
}

// rebuild deletes the table if there is one and makes it as d wants it, in one batch.
func (t *Table) rebuild(d Desired, now time.Time) error {
	t.broken = true
	found, err := t.found()
	if err != nil {
		return err
	}
	t.keep = retained{}
	want := d.ruleset(now, &t.keep)
	b := newBatch(t.conn, t.unowned)
	if found {
		b.deleteTable()
	}
	b.create(&want, now)
	return t.commit(b, &want)
}

// remove deletes the table if this process made one.
func (t *Table) remove() error {
	if t.have == nil && !t.broken {
		return nil
	}
	found, err := t.found()
	if err != nil && !errors.Is(err, ErrOwned) { // another process's table is none of ours
		return err
	}
	b := newBatch(t.conn, t.unowned)
	if found {
		b.deleteTable()
	}
	return t.commit(b, nil)
}

// commit sends a batch and takes want as what the kernel has now.
func (t *Table) commit(b *batch, want *ruleset) error {
	before, err := t.generation()
	if err != nil {
		return err
	}
	t.broken = true
	if err := b.flush(); err != nil {
		return err
	}
	t.have, t.broken = want, false
	after, err := t.generation()
	if err != nil {
		return err
	}
	// Each batch of anybody moves the generation by one. Had somebody else's come between since the
	// last look, then what have says must be checked.
	if rebuilt := b.created; after != before+1 || (before != t.checked && !rebuilt) {
		after = 0
	}
	t.checked = after
	return nil
}

// generation returns the number of the kernel's ruleset in this namespace; every change by anybody
// moves it.
func (t *Table) generation() (uint32, error) {
	gen, err := t.conn.GetGen()
	if err != nil {
		return 0, fmt.Errorf("read nftables generation: %w", err)
	}
	return gen.ID, nil
}

// found reports whether the table is there. A table of another process is an error.
func (t *Table) found() (bool, error) {
	owner, found, err := lookUp(t.conn)
	if err != nil || !found {
		return false, err
	}
	port, err := t.conn.GetPortID()
	if err != nil {
		return false, fmt.Errorf("read netlink port: %w", err)
	}
	if owner != 0 && owner != port {
		return false, ErrOwned
	}
	return true, nil
}

// lookUp returns the netlink port that owns the table, 0 if nobody does.
func lookUp(conn *nftables.Conn) (owner uint32, found bool, err error) {
	table, err := conn.ListTableOfFamily(Name, nftables.TableFamilyINet)
	switch {
	case errors.Is(err, unix.ENOENT):
		return 0, false, nil
	case err != nil:
		return 0, false, fmt.Errorf("look up table inet %s: %w", Name, err)
	}
	return table.Owner, true, nil
}

// LetGo closes the socket and nothing else, upon which the kernel removes an owned table. It is for a process that has
// to end while the goroutine that this table belongs to hangs, and the only method that another may call.
func (t *Table) LetGo() { t.conn.CloseLasting() }

// Close removes the table and closes the socket. The kernel does the same for an owned table when
// the process ends without it.
func (t *Table) Close() error {
	err := t.Apply(Desired{}, time.Now())
	return errors.Join(err, t.conn.CloseLasting())
}
