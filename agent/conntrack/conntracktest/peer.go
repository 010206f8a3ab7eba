package conntracktest

import (
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntrackfill"
)

// The two ends of the link that [NewPeer] makes: this host's addresses and interface, and the peer's.
var (
	Here4  = netip.MustParseAddr("192.0.2.1")
	Here6  = netip.MustParseAddr("2001:db8::1")
	There4 = netip.MustParseAddr("192.0.2.2")
	There6 = netip.MustParseAddr("2001:db8::2")
)

// HereLink is this host's interface to the peer of [NewPeer].
const HereLink = "here0"

const thereLink = "there0"

// Peer is another host: a network namespace that a link joins to the calling thread's.
type Peer struct{ work chan func() }

// NewPeer makes a peer and sets up both ends with the addresses of this package. The calling thread is in a
// namespace of its own; see [conntrackfill.Enter]. The peer lives until Close.
func NewPeer() (*Peer, error) { return NewPeerAt(HereLink, thereLink) }

// NewPeerAt is NewPeer with other interfaces: another peer has the same addresses as the first one.
func NewPeerAt(hereLink, thereLink string) (*Peer, error) {
	p := &Peer{make(chan func())}
	entered := make(chan error)
	var thread int
	go func() {
		err := conntrackfill.Enter()
		thread = unix.Gettid()
		entered <- err
		for f := range p.work {
			f()
		}
	}()
	if err := <-entered; err != nil {
		close(p.work)
		return nil, err
	}
	err := Run("ip link add "+hereLink+" type veth peer name "+thereLink+fmt.Sprintf(" netns %d", thread),
		"ip link set lo up",
		"ip address add "+Here4.String()+"/24 dev "+hereLink,
		"ip address add "+Here6.String()+"/64 dev "+hereLink+" nodad", "ip link set "+hereLink+" up")
	if err == nil {
		p.Do(func() {
			err = Run("ip link set lo up", "ip address add "+There4.String()+"/24 dev "+thereLink,
				"ip address add "+There6.String()+"/64 dev "+thereLink+" nodad", "ip link set "+thereLink+" up")
		})
	}
	if err == nil {
		err = Settle()
	}
	if err == nil {
		p.Do(func() { err = Settle() })
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Do runs f on the peer and waits for it.
func (p *Peer) Do(f func()) {
	done := make(chan struct{})
	p.work <- func() { defer close(done); f() }
	<-done
}

// Close ends the peer, and the link with it.
func (p *Peer) Close() { close(p.work) }

// Run runs command lines without shell syntax in the calling thread's namespace, up to the first that fails.
func Run(lines ...string) error {
	runtime.LockOSThread() // a command belongs to the namespace of the thread that starts it
	defer runtime.UnlockOSThread()
	for _, line := range lines {
		words := strings.Fields(line)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", line, err, out)
		}
	}
	return nil
}
