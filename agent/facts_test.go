package agent

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"ctguard/agent/survey"
)

// An operator is known by a management connection that has lasted longer than a login may take, and
// stays known when the configuration is read again.
func TestOperatorsSurviveReload(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	local, remote := netip.MustParseAddrPort(l.Addr().String()), netip.MustParseAddrPort(c.LocalAddr().String())
	here := survey.New(t.TempDir()) // nobody of this host's own sessions
	config := Config{Ports: []uint16{local.Port()}}
	old := &surveyor{host: here, config: config}
	start := time.Now()
	for _, step := range []struct {
		after time.Duration
		known int
	}{{0, 0}, {loginGrace - time.Second, 0}, {loginGrace, 1}} {
		peers, err := old.operators(start.Add(step.after))
		if err != nil || len(peers) != step.known {
			t.Errorf("after %s: operators %v, %v; want %d", step.after, peers, err, step.known)
		}
	}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	reload, surveys, ended := make(chan *surveyor), make(chan facts), make(chan error, 1)
	go func() { ended <- surveyLoop(ctx, old, reload, surveys) }()
	next := &surveyor{host: here, config: config}
	reload <- next
	<-surveys
	stop()
	<-ended
	if seen := next.seen[survey.Connection{Local: local, Remote: remote}]; !seen.Equal(start) {
		t.Errorf("seen since %s, want %s", seen, start)
	}
}
