package agent

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
)

// Run guards the table until ctx ends, then takes every step back. hup asks for the configuration
// to be read again.
func (a *Agent) Run(ctx context.Context, hup <-chan os.Signal) error {
	server, err := a.listen()
	if err != nil {
		return errors.Join(err, a.close())
	}
	group, ctx := errgroup.WithContext(ctx)
	walks := make(chan walk, 1)
	walked := make(chan func(*Agent), 1)
	surveys := make(chan facts, 1)
	reload := make(chan *surveyor, 1)
	a.learn(a.surveyor.survey())
	group.Go(func() error { return walkLoop(ctx, walks, walked) })
	group.Go(func() error { return surveyLoop(ctx, a.surveyor, reload, surveys) })
	group.Go(func() error { return server.serve(ctx) })
	group.Go(func() error { return a.loop(ctx, loopChannels{walks, walked, surveys, reload, hup}) })
	err = group.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, a.revert(), a.close())
}

// loopChannels are how the loop talks to the other goroutines.
type loopChannels struct {
	walks   chan<- walk
	walked  <-chan func(*Agent)
	surveys <-chan facts
	reload  chan *surveyor
	hup     <-chan os.Signal
}

// loop ticks until ctx ends.
func (a *Agent) loop(ctx context.Context, ch loopChannels) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			a.tick()
			if a.ready != nil {
				a.ready()
				a.ready = nil
			}
			timer.Reset(a.decision.Next)
		case result := <-ch.walked:
			a.walking = false
			result(a)
			if a.fresh || a.due {
				a.due = false
				timer.Reset(0) // who fills the table is news, and so is that all have entries
			}
		case f := <-ch.surveys:
			a.learn(f)
		case ask := <-a.asks:
			ask(a)
			if a.due { // those who only read must not set the pace
				a.due = false
				timer.Reset(0)
			}
		case <-ch.hup:
			if s := a.reload(); s != nil {
				select {
				case <-ch.reload: // an earlier one that nobody has taken yet
				default:
				}
				ch.reload <- s
			}
		}
		if !a.walking {
			if w := a.nextWalk(time.Now()); w != nil {
				a.walking = true
				ch.walks <- w
			}
		}
	}
}

// walkLoop carries walks out, one at a time.
func walkLoop(ctx context.Context, walks <-chan walk, walked chan<- func(*Agent)) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case w := <-walks:
			walked <- w(ctx)
		}
	}
}

// surveyLoop looks at the host every few seconds.
func surveyLoop(ctx context.Context, s *surveyor, reload <-chan *surveyor, surveys chan<- facts) error {
	timer := time.NewTicker(surveyPause)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case next := <-reload:
			next.seen = s.seen // who has logged in has not left because of a new configuration
			s = next
		case <-timer.C:
		}
		select {
		case surveys <- s.survey():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
