package policy

import "time"

// stretch is a time for which something is let be. When it is needed again soon, it lasts longer each time.
type stretch struct {
	until time.Time
	span  time.Duration // for how long it was when last needed
}

// stretchMost is the longest stretch.
const stretchMost = time.Hour

// on reports whether it goes on.
func (s *stretch) on(now time.Time) bool { return now.Before(s.until) }

// begin begins one of at least the given length, or anew one that goes on, and returns how long it is.
func (s *stretch) begin(now time.Time, least time.Duration) time.Duration {
	switch {
	case s.on(now): // as long as it is
	case s.span == 0 || now.Sub(s.until) > s.span:
		s.span = least
	default:
		s.span = min(4*s.span, stretchMost)
	}
	s.until = now.Add(s.span)
	return s.span
}
