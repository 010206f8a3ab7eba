package conntrack

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// FuzzParse feeds the parser messages that no kernel sends. It must neither panic nor look past the
// message, and the short way through a tuple must read what the long one reads.
func FuzzParse(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{2, 0, 0, 0})
	for _, b := range realMessages(f) {
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		exact := bytes.Clone(b)
		exact = exact[:len(exact):len(exact)] // reading past the end panics
		var e entry
		found := e.parse(exact)
		for _, s := range []span{e.tupleSpan, e.zoneSpan, e.idSpan, e.replySpan, e.infoSpan} {
			if s.from > s.to || int(s.to) > len(exact) {
				t.Fatalf("span %v of %d bytes", s, len(exact))
			}
		}
		_, _ = e.unacked(), e.translated()
		_ = newLimits(nil).of(&e)
		if c := e.class(false); c >= policy.NumClasses {
			t.Fatalf("class %d", c)
		}
		var r record
		r.set(&e)
		_ = rankOf(&e, false).step()
		if !found {
			return
		}
		value := e.bytes(e.tupleSpan)[attrLen:]
		var short, long tuple
		if short.parse(value) && (!long.walk(value) || short != long) {
			t.Fatalf("short %+v, long %+v", short, long)
		}
	})
}

// FuzzDatagram does the same one layer below.
func FuzzDatagram(f *testing.F) {
	for _, b := range realMessages(f) {
		f.Add(wrap(msgNew, 0, b))
		f.Add(append(wrap(msgNew, 0, b), wrap(unix.NLMSG_DONE, 0, []byte{0, 0, 0, 0})...))
	}
	f.Add(wrap(unix.NLMSG_ERROR, 0, []byte{0xff, 0xff, 0xff, 0xff}))
	f.Fuzz(func(_ *testing.T, b []byte) {
		var table Table
		var end ending
		_, _ = table.visitAll(b[:len(b):len(b)], &end, func(*entry) bool { return true })
		var sum policy.KernelCounters
		_, _ = addCounters(&sum, b, dumpSeq)
	})
}

// wrap makes a netlink message around a payload.
func wrap(kind, flags uint16, payload []byte) []byte {
	b := appendMessage(nil, kind, flags, dumpSeq, 0)[:headerLen]
	b = append(b, payload...)
	closeMessage(b, 0)
	return b
}

// realMessages are messages of a real dump, kept in testdata.
func realMessages(tb testing.TB) (all [][]byte) {
	files, err := filepath.Glob("testdata/message-*")
	if err != nil || len(files) == 0 {
		tb.Fatalf("no messages in testdata: %v", err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, b)
	}
	return all
}

func TestParseCut(t *testing.T) {
	for _, b := range realMessages(t) {
		var whole entry
		if !whole.parse(b) {
			t.Fatalf("not an entry: %x", b)
		}
		for n := range b {
			var cut entry
			found := cut.parse(b[:n:n])
			if inTuple := n < int(whole.tupleSpan.to); found && (inTuple || cut.orig != whole.orig) {
				t.Fatalf("cut to %d of %d bytes: %+v", n, len(b), cut.orig)
			}
		}
	}
}

func TestParseUnknownAttributes(t *testing.T) {
	for _, b := range realMessages(t) {
		var want, got entry
		want.parse(b)
		padded := slices.Clone(b[:familyLen])
		padded = appendAttr(padded, 999, 1, 2, 3)
		padded = appendAttr(padded, 1000)
		padded = append(padded, b[familyLen:]...)
		padded = appendAttr(padded, 1001, bytes.Repeat([]byte{7}, 50)...)
		if !got.parse(padded) || got.orig != want.orig || got.status != want.status ||
			got.timeout != want.timeout || got.state != want.state {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

func TestVisitAll(t *testing.T) {
	messages := realMessages(t)
	entry0 := wrap(msgNew, 0, messages[0])
	torn := wrap(msgNew, unix.NLM_F_DUMP_INTR, messages[0])
	stranger := wrap(msgNew, 0, messages[0])
	stranger[8] = 77 // sequence number
	for _, c := range []struct {
		name     string
		datagram []byte
		visits   int
		more     bool
		end      ending
		err      string
	}{
		{"two entries", slices.Concat(entry0, entry0), 2, true, ending{}, ""},
		{"torn", slices.Concat(entry0, torn), 2, true, ending{torn: true}, ""},
		{"end", wrap(unix.NLMSG_DONE, 0, []byte{0, 0, 0, 0}), 0, false, ending{whole: true}, ""},
		{"end without a code", wrap(unix.NLMSG_DONE, 0, nil), 0, false, ending{whole: true}, ""},
		{"end with an error", wrap(unix.NLMSG_DONE, 0, []byte{0xf4, 0xff, 0xff, 0xff}), 0, false, ending{},
			"cannot allocate memory"},
		{"refused", wrap(unix.NLMSG_ERROR, 0, []byte{0xff, 0xff, 0xff, 0xff}), 0, false, ending{}, "operation not permitted"},
		{"another answer", stranger, 0, true, ending{}, ""},
		{"an unknown message", wrap(0x7777, 0, messages[0]), 0, true, ending{}, ""},
		{"half a header", entry0[:7], 0, false, ending{}, "truncated"},
		{"half a message", entry0[:len(entry0)-4], 0, false, ending{}, "truncated"},
		{"empty", nil, 0, true, ending{}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var table Table
			var end ending
			visits := 0
			more, err := table.visitAll(c.datagram, &end, func(*entry) bool { visits++; return true })
			if visits != c.visits || more != c.more || end != c.end {
				t.Errorf("%d visits, more %v, %+v; want %d, %v, %+v", visits, more, end, c.visits, c.more, c.end)
			}
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want %q", err, c.err)
			}
		})
	}
}

// Where the host sees one direction of TCP, connections without an answer count as those that have one; what is not TCP
// does not.
func TestClassWhereOneSided(t *testing.T) {
	for _, c := range []struct {
		proto  uint8
		status uint32
		want   policy.Class
	}{
		{protoTCP, 0, policy.Assured},
		{protoTCP, statusSeenReply, policy.Replied},
		{protoUDP, 0, policy.Unreplied},
	} {
		e := entry{orig: tuple{proto: c.proto}, status: c.status}
		if got := e.class(true); got != c.want {
			t.Errorf("protocol %d, status %x: %v, want %v", c.proto, c.status, got, c.want)
		}
	}
}
