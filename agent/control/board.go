package control

import (
	"context"
	"sync/atomic"
	"time"

	"ctguard/policy"
)

// Board is what the loop publishes and what clients ask of it. It is safe for concurrent use.
type Board struct {
	status    atomic.Pointer[Status]
	events    eventLog
	history   history
	metrics   *metrics
	questions chan Question
}

// NewBoard returns an empty board.
func NewBoard() *Board {
	b := &Board{metrics: newMetrics(), questions: make(chan Question)}
	b.events.news = make(chan struct{})
	return b
}

// Publish makes the state after a tick visible. Nobody changes s or what it refers to from now on.
func (b *Board) Publish(s *Status) {
	b.status.Store(s)
	b.history.add(s)
	b.metrics.update(s)
}

// Status returns what was published last, nil before the first tick. It must not be changed.
func (b *Board) Status() *Status { return b.status.Load() }

// Tell keeps an event, among the last ones, and counts it.
func (b *Board) Tell(e policy.Event) {
	b.events.add(e)
	b.metrics.events.WithLabelValues(string(e.Kind)).Inc()
}

// Noticed counts events for the operator by what became of them: "sent", "failed" or "left_out".
func (b *Board) Noticed(result string, n int) {
	b.metrics.notices.WithLabelValues(result).Add(float64(n))
}

// Points returns what the table was like over the last so long, oldest first.
func (b *Board) Points(last time.Duration) []Point { return b.history.points(last) }

// Recent returns the last events, n at most, oldest first.
func (b *Board) Recent(n int) []NumberedEvent { return b.events.recent(n) }

// Questions are what clients ask of the loop.
func (b *Board) Questions() <-chan Question { return b.questions }

// Question is a request that waits for its answer.
type Question struct {
	Request Request
	answer  chan answer
}

type answer struct {
	lines []string
	err   error
}

// Answer answers the question, once. It never waits: the channel has room for the one answer, whether or not
// the client is still there.
func (q Question) Answer(lines []string, err error) { q.answer <- answer{lines, err} }

// ask has the loop answer a request and waits for it, or until ctx ends.
func (b *Board) ask(ctx context.Context, r Request) ([]string, error) {
	q := Question{r, make(chan answer, 1)}
	select {
	case b.questions <- q:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case a := <-q.answer:
		return a.lines, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
