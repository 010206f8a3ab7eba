package conntrack

// Besides is what an eviction does on its way, so that no pass of its own is needed for it: most of what a pass costs
// is the kernel's work for sending the entries.
type Besides struct {
	Retire *Retirement // what is finished runs out, as [Table.Retire] has it; nil for nothing
	Retime *Retiming   // what has more time left than that gets it, as [Table.Retime] has it; nil for nothing

	Retired, Retimed int // what came of it, once Evict has returned
}

// made counts a change that the kernel made.
func (b *Besides) made(what errand) {
	switch {
	case b == nil:
	case what == retiring:
		b.Retired++
	case what == retiming:
		b.Retimed++
	}
}

// besides is that under way.
type besides struct {
	retire *retirer
	retime *retimer
}

func newBesides(b *Besides) besides {
	var all besides
	if b == nil {
		return all
	}
	if b.Retire != nil {
		all.retire = newRetirer(*b.Retire)
	}
	if b.Retime != nil {
		all.retime = newRetimer(*b.Retime)
	}
	return all
}

// retires says whether an entry is of those that run out.
func (b besides) retires(e *entry) bool { return b.retire != nil && b.retire.may(e) }

// visit deals with one entry, and says whether that is all that is to be done with it.
func (b besides) visit(queue *changes, e *entry) (done bool) {
	if b.retire != nil && b.retire.takes(e) {
		queue.errand = retiring
		queue.end(e)
		queue.errand = own
		return true
	}
	if b.retime != nil {
		queue.errand = retiming
		b.retime.visit(queue, e)
		queue.errand = own
	}
	return false
}
