package main

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntrackfill"
	"ctguard/agent/conntrack/conntracktest"
	"ctguard/policy"
)

// sample is what a daemon holds on to: at level 0, except for the elements of its sets, which are counted in the flood.
type sample struct {
	memory, goroutines, descriptors, elements, state int
}

func (s sample) String() string {
	return fmt.Sprintf("%.1f MiB, %d goroutines, %d descriptors, %d set elements, %d bytes of state",
		float64(s.memory)/(1<<20), s.goroutines, s.descriptors, s.elements, s.state)
}

// Floods come and go for CTGUARD_SOAK (8s): what the daemon holds on to does not grow, everything is as before at the
// end, and the recording of it replays.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes half a minute")
	}
	long := 8 * time.Second
	if d, err := time.ParseDuration(os.Getenv("CTGUARD_SOAK")); err == nil {
		long = d
	}
	h := newHost(t)
	text := fmt.Sprintf("socket = %q\nstate_dir = %q\n[table]\ncapacity = %d\n", h.dir+"/ctguard.sock", h.state, capacity)
	for _, step := range policy.StepNames() {
		text += fmt.Sprintf("[steps.%s]\nsettle = \"200ms\"\n", step)
	}
	if err := os.WriteFile(h.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	h.converse(8080)
	before := h.snapshot()
	recording := filepath.Join(h.dir, "soak.gz")
	h.launch(h.program, nil, "sh", "-c", `exec "$@" --record "$0"`, recording)
	h.ready()
	spoof := h.spoofer()
	var samples []sample
	tops := 0
	for end := time.Now().Add(long); time.Now().Before(end) || len(samples) < 2; {
		elements, top := h.floodFor(4*time.Second, spoof)
		if top >= 7 {
			tops++
		}
		h.until("level 0", func() bool { return h.status().Level == 0 })
		s := h.held()
		s.elements = elements
		samples = append(samples, s)
	}
	h.stop()
	h.same(before)
	t.Logf("%d floods, %d of them to level 7 or 8; after the first: %s; most: %s; at the end: %s", len(samples), tops,
		samples[0], most(samples), samples[len(samples)-1])
	if tops == 0 {
		t.Error("no flood reached the top levels: this shows nothing")
	}
	grown(t, samples)
	if out, err := exec.Command(h.program, "replay", recording).CombinedOutput(); err != nil {
		t.Errorf("the recording does not replay: %v: %s", err, out)
	}
}

// grown fails the test where the last third of the samples holds more than the first.
func grown(t *testing.T, samples []sample) {
	t.Helper()
	third := max(1, len(samples)/3)
	first, last := most(samples[:third]), most(samples[len(samples)-third:])
	for _, one := range []struct {
		what               string
		first, last, spare int
	}{
		{"bytes of memory", first.memory, last.memory, first.memory/4 + 4<<20},
		{"goroutines", first.goroutines, last.goroutines, 4},
		{"descriptors", first.descriptors, last.descriptors, 4},
		{"elements of sets", first.elements, last.elements, first.elements/2 + 64},
		{"bytes of state", first.state, last.state, 16 << 10}, // the ordinary day is learnt meanwhile
	} {
		if one.last > one.first+one.spare {
			t.Errorf("%s grew from %d to %d", one.what, one.first, one.last)
		}
	}
}

// most returns the most of each.
func most(samples []sample) (m sample) {
	for _, s := range samples {
		m = sample{max(m.memory, s.memory), max(m.goroutines, s.goroutines), max(m.descriptors, s.descriptors),
			max(m.elements, s.elements), max(m.state, s.state)}
	}
	return m
}

// spoofer returns what sends a burst of questions from strangers' addresses to ports of this host.
func (h *host) spoofer() (burst func()) {
	h.Helper()
	fd, err := -1, error(nil)
	h.peer.Do(func() { fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW) })
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { unix.Close(fd) })
	return func() {
		for range 50 {
			to := netip.AddrPortFrom(conntracktest.Here4, uint16(1024+rand.IntN(60000)))
			_ = unix.Sendto(fd, spoofed(to), 0, &unix.SockaddrInet4{Addr: to.Addr().As4()})
		}
	}
}

// floodFor floods the table: strangers hold conversations, others only begin them, and spoofed questions come from
// outside. It returns the most elements that the daemon's sets had, and the highest level.
func (h *host) floodFor(long time.Duration, spoof func()) (elements, top int) {
	h.Helper()
	const established, synSent, conversation = 3, 1, conntrackfill.SeenReply | conntrackfill.Assured
	dst := netip.MustParseAddr("203.0.113.200")
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end, n := time.Now().Add(long), 0; time.Now().Before(end); n++ {
		var flows []conntrackfill.Flow
		for range 40 {
			f := conntrackfill.Flow{Src: netip.AddrFrom4([4]byte{203, 0, 113, byte(1 + rand.IntN(12))}), Dst: dst,
				Proto: unix.IPPROTO_TCP, SrcPort: uint16(1024 + rand.IntN(60000)), DstPort: 443, State: established,
				Status: conversation, Timeout: 5}
			if rand.IntN(3) == 0 {
				f.Src, f.State, f.Status = netip.AddrFrom4([4]byte{198, 51, 100, byte(rand.IntN(256))}), synSent, 0
			}
			flows = append(flows, f)
		}
		_, _ = conntrackfill.Fill(slices.Values(flows)) // some of them are there already
		spoof()
		if n%20 == 19 {
			top, elements = max(top, h.status().Level), max(elements, h.elements())
		}
		<-tick.C
	}
	return elements, top
}

// elements counts those of the daemon's sets.
func (h *host) elements() (n int) {
	out, err := exec.Command("nft", "list", "table", "inet", "ctguard").Output()
	if err != nil {
		return 0 // there is no table now
	}
	return strings.Count(string(out), "expires")
}

// held measures what the daemon holds on to.
func (h *host) held() (s sample) {
	h.Helper()
	figures := h.metrics()
	s = sample{memory: figures["process_resident_memory_bytes"], goroutines: figures["go_goroutines"],
		descriptors: figures["process_open_fds"]}
	entries, err := os.ReadDir(h.state)
	if err != nil || s.memory == 0 || s.goroutines == 0 || s.descriptors == 0 {
		h.Fatalf("%+v, %v", s, err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			s.state += int(info.Size())
		}
	}
	return s
}

// metrics reads the daemon's metrics that have no labels.
func (h *host) metrics() map[string]int {
	h.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(h.dir, "ctguard.sock"))
		}}}
	answer, err := client.Get("http://ctguard/metrics")
	if err != nil {
		h.Fatal(err)
	}
	defer answer.Body.Close()
	figures := make(map[string]int)
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if f, err := strconv.ParseFloat(value, 64); err == nil {
			figures[name] = int(f)
		}
	}
	return figures
}
