package conntrack

// Capabilities is what this kernel can do beyond what every kernel can.
type Capabilities struct {
	FilteredDump  bool // a dump of one source only
	FilteredFlush bool // deletes all entries of one source with one request
}

func (t *Table) capabilities() Capabilities {
	if t.force != nil {
		return *t.force
	}
	return Capabilities{}
}
