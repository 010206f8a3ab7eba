package load

import (
	"context"
	"fmt"
	"sync"

	"ctguard/cmd/ctlab/internal/role"
)

// worker does one round after another; open comes first, so that a round is all that is timed.
type worker interface {
	open() error
	// round does one round and returns what it adds to the figure.
	round() (uint64, error)
	close()
}

// Run is the role. It ends by itself when its time is over.
func Run(ctx context.Context, c *role.Conn) error {
	var spec Spec
	if err := c.Spec(&spec); err != nil {
		return err
	}
	workers, err := spec.workers()
	if err != nil {
		return err
	}
	for _, w := range workers {
		if err := w.open(); err != nil {
			return err
		}
		defer w.close()
	}
	ctx, err = c.Ready(ctx)
	if err != nil {
		return err
	}
	at, err := c.Started(ctx)
	if err != nil {
		return c.Result(Result{})
	}
	return c.Result(spec.measure(workers, at))
}

func (s Spec) workers() ([]worker, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	n := s.Workers
	if s.Kind == Bulk {
		n = 1
	}
	var out []worker
	for i := range n {
		src := s.Sources[i%len(s.Sources)]
		switch s.Kind {
		case UDP:
			out = append(out, &udpWorker{src: src, dst: s.Targets[i%len(s.Targets)]})
		case TCP:
			out = append(out, &tcpWorker{spec: s, next: i})
		case Bulk:
			out = append(out, &bulkWorker{src: src, dst: s.Targets[0]})
		default:
			return nil, fmt.Errorf("unknown kind of load %q", s.Kind)
		}
	}
	return out, nil
}

// measure runs all workers to the end of the time. What a worker begins before the end and ends
// after it counts, with the time it took: each has its own rate, and the rates are added up.
func (s Spec) measure(workers []worker, at role.Instant) Result {
	var wg sync.WaitGroup
	results := make([]Result, len(workers))
	for i, w := range workers {
		wg.Go(func() { results[i] = s.work(w, at) })
	}
	wg.Wait()
	total := Result{Seconds: s.For.Seconds()}
	for _, r := range results {
		total.Done += uint64(r.Rate() * total.Seconds)
		total.Failed += r.Failed
	}
	return total
}

func (s Spec) work(w worker, at role.Instant) Result {
	var res Result
	for at.Since() < s.Warm {
		_, _ = w.round() // to warm up
	}
	begin := role.Now()
	for begin.Since() < s.For {
		n, err := w.round()
		if err != nil {
			res.Failed++
		}
		res.Done += n
	}
	res.Seconds = begin.Since().Seconds()
	return res
}
