package flood

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/cmd/ctlab/internal/packet"
	"ctguard/cmd/ctlab/internal/role"
)

// slice is how often the pacer looks at the clock. At 5 000 connections a second
// it sends ten at a time, which is how a botnet's packets arrive too.
const slice = 2 * time.Millisecond

// Run is the role.
func Run(ctx context.Context, c *role.Conn) error {
	var spec Spec
	if err := c.Spec(&spec); err != nil {
		return err
	}
	if err := spec.check(); err != nil {
		return err
	}
	f, err := open(spec)
	if err != nil {
		return err
	}
	ctx, err = c.Ready(ctx)
	if err != nil {
		return err
	}
	at, err := c.Started(ctx)
	if err != nil {
		return c.Result(Result{})
	}
	res := f.run(ctx, at)
	<-ctx.Done()
	return c.Result(res)
}

// flooder is one attack in progress.
type flooder struct {
	spec Spec
	tx   *sender
	src  *tuples
	dst  *targets
	hdr  packet.Header
	rng  *rand.Rand

	rx        int     // SYN-ACKs come in here, for Handshake
	acks      *sender // and are answered here, by another goroutine than tx's
	completed atomic.Uint64

	voice    *sender // speaks on connections that stand; nil where they are held in silence
	mu       sync.Mutex
	standing []standing
}

func open(spec Spec) (*flooder, error) {
	iface, err := net.InterfaceByName(spec.Interface)
	if err != nil {
		return nil, fmt.Errorf("find interface: %w", err)
	}
	tx, err := newSender(iface)
	if err != nil {
		return nil, err
	}
	f := &flooder{
		spec: spec, tx: tx, rx: -1,
		src: newTuples(spec.Sources, spec.Count, spec.Ports), dst: newTargets(spec),
		rng: rand.New(rand.NewPCG(1, 2)),
	}
	f.hdr.DstMAC = spec.GatewayMAC
	copy(f.hdr.SrcMAC[:], iface.HardwareAddr)
	if spec.Kind != Handshake {
		return f, nil
	}
	if f.acks, err = newSender(iface); err != nil {
		return nil, err
	}
	if spec.Speak > 0 {
		if f.voice, err = newSender(iface); err != nil {
			return nil, err
		}
	}
	f.rx, err = newReceiver(iface, spec.Sources.Addr().Is6())
	return f, err
}

func (f *flooder) run(ctx context.Context, start role.Instant) Result {
	var wg sync.WaitGroup
	answering, stop := context.WithCancel(ctx)
	if f.spec.Kind == Handshake {
		wg.Go(func() { f.answer(answering) })
	}
	if f.voice != nil {
		wg.Go(func() { f.speak(answering) })
	}
	if f.spec.OneCore {
		f.saturate(ctx, start)
	} else {
		f.pace(ctx, start)
	}
	res := Result{Sent: f.tx.sent, Errors: f.tx.failed, Seconds: start.Since().Seconds()}
	if f.spec.Kind == Handshake {
		// Late SYN-ACKs are answered too: a botnet's kernels would.
		_ = role.WaitUntil(ctx, role.Now().Add(500*time.Millisecond))
	}
	stop()
	wg.Wait()
	res.Completed = f.completed.Load()
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &ru) == nil {
		res.CPU = float64(ru.Utime.Nano()+ru.Stime.Nano()) / 1e9
	}
	return res
}

// pace sends at the rate asked for. Time that was lost is not made up for beyond
// a tenth of a second: a stalled machine must not be answered with a burst.
func (f *flooder) pace(ctx context.Context, start role.Instant) {
	var done, skipped uint64
	tick := time.NewTicker(slice)
	defer tick.Stop()
	for {
		elapsed := start.Since()
		if elapsed >= f.spec.Duration || done >= f.spec.Limit {
			return
		}
		due := uint64(f.active(elapsed).Seconds() * float64(f.spec.Rate))
		if due > done+skipped+uint64(f.spec.Rate)/10 {
			skipped = due - done - uint64(f.spec.Rate)/10
		}
		for done+skipped < due && done < f.spec.Limit {
			f.one()
			done++
		}
		f.tx.flush()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// active is how much of the elapsed time the attack was on.
func (f *flooder) active(elapsed time.Duration) time.Duration {
	if f.spec.On == 0 {
		return elapsed
	}
	period := f.spec.On + f.spec.Off
	return elapsed/period*f.spec.On + min(elapsed%period, f.spec.On)
}

// payload of a UDP flood: a datagram of the size of a small query.
var payload = []byte("ctlab flood, documentation addresses only\n")

func (f *flooder) one() {
	h := f.hdr
	h.Src, h.SrcPort = f.src.take()
	h.Dst, h.DstPort = f.dst.take()
	b := f.tx.frame()
	switch f.spec.Kind {
	case UDP:
		b = packet.AppendUDP(b, h, payload)
	case Odd:
		b = packet.AppendOther(b, h, packet.ProtoTest, payload)
	case ACK:
		b = packet.AppendTCP(b, h, packet.Segment{Flags: packet.ACK, Seq: f.rng.Uint32(), Ack: f.rng.Uint32()}, nil)
	default:
		b = packet.AppendTCP(b, h, packet.Segment{Flags: packet.SYN, Seq: f.rng.Uint32()}, nil)
	}
	f.tx.push(b)
}
