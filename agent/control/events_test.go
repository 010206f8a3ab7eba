package control

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ctguard/policy"
)

// The events that are kept are bounded in number, numbered without gaps, and read from any point.
func TestEventLog(t *testing.T) {
	var h eventLog
	if got := h.recent(20); got == nil || len(got) != 0 {
		t.Errorf("an empty log is %v: not an empty list", got)
	}
	for i := range eventsKept + 100 {
		h.add(policy.Event{Reason: fmt.Sprint(i + 1)})
	}
	if len(h.list) != eventsKept {
		t.Errorf("%d events are kept, want %d", len(h.list), eventsKept)
	}
	if got := h.recent(20); len(got) != 20 ||
		got[0].Number != eventsKept+81 || got[0].Reason != fmt.Sprint(eventsKept+81) ||
		got[19].Number != eventsKept+100 {
		t.Errorf("the last 20 are %d from %d to %d", len(got), got[0].Number, got[len(got)-1].Number)
	}
	for _, c := range []struct {
		after            uint64
		first, last, len int
	}{
		{0, 101, eventsKept + 100, eventsKept},
		{eventsKept + 98, eventsKept + 99, eventsKept + 100, 2},
		{eventsKept + 100, 0, 0, 0},
	} {
		texts, _ := h.since(c.after)
		var got []NumberedEvent
		for _, text := range texts {
			var e NumberedEvent
			if err := json.Unmarshal(text, &e); err != nil {
				t.Fatal(err)
			}
			got = append(got, e)
		}
		if len(got) != c.len {
			t.Errorf("after %d: %d events, want %d", c.after, len(got), c.len)
			continue
		}
		if c.len > 0 && (got[0].Number != uint64(c.first) || got[0].Reason != fmt.Sprint(c.first) ||
			got[len(got)-1].Number != uint64(c.last)) {
			t.Errorf("after %d: %d events from %d to %d", c.after, len(got), got[0].Number, got[len(got)-1].Number)
		}
	}
}

// The events that are kept are bounded in bytes, too, however long reasons are; the newest event always stays.
func TestEventLogBytes(t *testing.T) {
	var h eventLog
	held := func() (n int) {
		for _, one := range h.list {
			n += len(one.text)
		}
		return n
	}
	for i := range 100 {
		h.add(policy.Event{Reason: strings.Repeat("x", 50_000+i)})
		if n := held(); n > eventBytes || n != h.bytes {
			t.Fatalf("%d bytes are kept, counted as %d", n, h.bytes)
		}
	}
	if len(h.list) < eventBytes/60_000 {
		t.Errorf("only %d events are kept", len(h.list))
	}
	h.add(policy.Event{Reason: strings.Repeat("x", 2*eventBytes)})
	if len(h.list) != 1 {
		t.Errorf("%d events are kept beside one that is too long", len(h.list)-1)
	}
	h.add(policy.Event{Reason: "short"})
	if got := h.recent(20); len(got) != 1 || got[0].Reason != "short" || h.bytes != held() {
		t.Errorf("%d events of %d bytes, counted as %d", len(got), held(), h.bytes)
	}
}

// What is told over the socket is what encoding/json makes of a list.
func TestSendList(t *testing.T) {
	var h eventLog
	for n := range 3 {
		var events []NumberedEvent
		for _, one := range h.list {
			events = append(events, one.NumberedEvent)
		}
		want := httptest.NewRecorder()
		sendJSON(want, append([]NumberedEvent{}, events...))
		got := httptest.NewRecorder()
		texts, _ := h.since(0)
		sendList(got, texts)
		if diff := cmp.Diff(want.Body.String(), got.Body.String()); diff != "" {
			t.Errorf("%d events (-want +got):\n%s", n, diff)
		}
		h.add(policy.Event{Kind: policy.LimitEvent, Reason: "a < b", Prefix: netip.MustParsePrefix("192.0.2.0/24")})
	}
}
