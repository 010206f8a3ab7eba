package agent

import "time"

// recallDay gives the machine what an earlier process learnt of an ordinary day on this host.
func (l *loop) recallDay() {
	day, err := l.state.Day(time.Now())
	if l.trouble("ordinary day", err); err == nil && day.Known() {
		l.machine.Recall(day)
	}
}
