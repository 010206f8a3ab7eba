package control

import (
	"encoding/json"
	"sync"

	"ctguard/policy"
)

// Bounds of the events that are kept: their number, and the bytes of their JSON.
const (
	eventsKept = 1024
	eventBytes = 1 << 20
)

// NumberedEvent is an event with its place in the agent's life.
type NumberedEvent struct {
	Number uint64 `json:"number"`
	policy.Event
}

// told is an event and its JSON, which all clients share.
type told struct {
	NumberedEvent
	text []byte
}

// eventLog is the last events, numbered so that a reader can go on where it stopped.
type eventLog struct {
	mu    sync.Mutex
	list  []told
	bytes int
	next  uint64
	news  chan struct{} // closed and replaced at each event; nil where nobody waits
}

// add appends an event and forgets the oldest beyond the bounds; the newest always stays.
func (h *eventLog) add(e policy.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next++
	one := told{NumberedEvent: NumberedEvent{h.next, e}}
	one.text, _ = json.Marshal(one.NumberedEvent) // it has nothing that JSON can't say
	h.bytes += len(one.text)
	old := 0
	for old < len(h.list) && (len(h.list)-old >= eventsKept || h.bytes > eventBytes) {
		h.bytes -= len(h.list[old].text)
		old++
	}
	h.list = append(h.list[:0], h.list[old:]...)
	h.list = append(h.list, one)
	if h.news != nil {
		close(h.news)
		h.news = make(chan struct{})
	}
}

// since returns the JSON of the events after a number, oldest first, and what is closed at the next event.
func (h *eventLog) since(number uint64) ([][]byte, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	from := len(h.list)
	for from > 0 && h.list[from-1].Number > number {
		from--
	}
	texts := make([][]byte, 0, len(h.list)-from)
	for _, one := range h.list[from:] {
		texts = append(texts, one.text)
	}
	return texts, h.news
}

// recent returns the last events, n at most, oldest first.
func (h *eventLog) recent(n int) []NumberedEvent {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make([]NumberedEvent, 0, n)
	for _, one := range h.list[max(0, len(h.list)-n):] {
		list = append(list, one.NumberedEvent)
	}
	return list
}
