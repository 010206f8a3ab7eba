package service

import (
	"context"
	"sync"

	"golang.org/x/sys/unix"

	"ctguard/cmd/ctlab/internal/role"
)

// Role is the name under which Run is registered.
const Role = "service"

// The ports that are served.
const (
	HTTPPort = 80
	SSHPort  = 22
	LinePort = 7000
	// SpeakPort is where the server speaks first, a line every SpeakPause.
	SpeakPort = 7001
	// SinkPort takes a stream and says nothing.
	SinkPort = 7002
	UDPPort  = 5353
)

// maxFiles is enough for the connections that the heaviest attack holds.
const maxFiles = 400_000

// raiseFiles gets as many descriptors as the system gives, and says how many.
func raiseFiles() int {
	limit := unix.Rlimit{Cur: maxFiles, Max: maxFiles}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		return maxFiles
	}
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return 1024
	}
	limit.Cur = limit.Max
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) // else the soft limit has to do, and is above spareFiles
	return int(limit.Max)
}

// Spec says what is served besides.
type Spec struct {
	Overlay bool `json:"overlay"` // the far end of a tunnel, on OverlayPort
}

// Result says what the services cost.
type Result struct {
	CPU float64 `json:"cpu_seconds"`
}

// Run is the role.
func Run(ctx context.Context, c *role.Conn) error {
	var spec Spec
	if err := c.Spec(&spec); err != nil {
		return err
	}
	tcp, err := newTCPServer(raiseFiles())
	if err != nil {
		return err
	}
	for port, k := range map[int]kind{HTTPPort: httpListener, SSHPort: echoListener, LinePort: echoListener,
		SpeakPort: speakListener, SinkPort: sinkListener} {
		if err := tcp.listen(port, k); err != nil {
			return err
		}
	}
	udp, err := newUDPEcho(UDPPort)
	if err != nil {
		return err
	}
	var tunnel *overlay
	if spec.Overlay {
		if tunnel, err = newOverlay(); err != nil {
			return err
		}
	}
	ctx, err = c.Ready(ctx)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	if tunnel != nil {
		wg.Go(func() { tunnel.serve(ctx) })
	}
	wg.Go(func() { tcp.serve(ctx) })
	wg.Go(func() { udp.serve(ctx) })
	wg.Wait()
	var res Result
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &ru) == nil {
		res.CPU = float64(ru.Utime.Nano()+ru.Stime.Nano()) / 1e9
	}
	return c.Result(res)
}
