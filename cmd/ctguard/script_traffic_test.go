package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntrackfill"
	"ctguard/agent/conntrack/conntracktest"
	"ctguard/agent/control"
	"ctguard/policy"
)

// script is what the commands in this file keep between each other.
type script struct {
	places map[string]*os.File // namespaces by name; "host" is the script's own
	lines  []*line
	notify *net.UnixConn // where systemd would listen
	watch  []string      // peers that count what can't be there
}

// ofScript is where setUp puts a script's own.
type ofScript struct{}

// place returns the network namespace called name.
func place(ts *testscript.TestScript, name string) *os.File {
	ns := ts.Value(ofScript{}).(*script).places[name]
	if ns == nil {
		ts.Fatalf("there is no peer %q", name)
	}
	return ns
}

// thisNamespace opens the network namespace of the calling thread.
func thisNamespace() (*os.File, error) { return os.Open("/proc/thread-self/ns/net") }

// inside runs f on a thread in a network namespace. The thread ends with f.
func inside(ns *os.File, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// ip runs the program ip in the namespace of the calling thread.
func ip(args string) error {
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w\n%s", args, err, out)
	}
	return nil
}

// peer NAME [HOSTADDR PEERADDR]... makes another network namespace, one link away. The link is called
// NAME here and uplink there; each pair of addresses has its prefix length, and the last address of the
// host in each family is the peer's gateway.
func peer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 || len(args)%2 == 0 {
		ts.Fatalf("usage: peer NAME HOSTADDR PEERADDR [HOSTADDR PEERADDR]...")
	}
	name := args[0]
	var there *os.File
	made := make(chan error)
	go func() {
		err := conntrackfill.Enter()
		if err == nil {
			there, err = thisNamespace()
		}
		made <- err
	}()
	ts.Check(<-made)
	ts.Value(ofScript{}).(*script).places[name] = there
	ts.Defer(func() { there.Close() })
	ts.Check(ip(fmt.Sprintf("link add %s type veth peer name uplink netns /proc/%d/fd/%d", name, os.Getpid(), there.Fd())))
	ts.Check(ip("link set " + name + " up"))
	ts.Check(inside(there, func() error { return errors.Join(ip("link set lo up"), ip("link set uplink up")) }))
	for pair := range slices.Chunk(args[1:], 2) {
		gateway, err := netip.ParsePrefix(pair[0])
		ts.Check(err)
		// Nobody else is on this link: duplicate addresses need not be waited for.
		nodad := ""
		if gateway.Addr().Is6() {
			nodad = " nodad"
		}
		ts.Check(ip("address add " + pair[0] + " dev " + name + nodad))
		ts.Check(inside(there, func() error {
			return errors.Join(ip("address add "+pair[1]+" dev uplink"+nodad),
				ip("route replace default via "+gateway.Addr().String()))
		}))
	}
	ts.Check(inside(there, conntracktest.Settle))
	ts.Check(conntracktest.Settle())
}

// listen [-speaks] [-in PEER] ADDR... opens TCP sockets that listen until the script ends, and answer with what
// they are sent. With -speaks they are the ones who speak, and read nothing.
func listen(ts *testscript.TestScript, _ bool, args []string) {
	where, serve := "host", echo
	if len(args) > 1 && args[0] == "-speaks" {
		serve, args = speak, args[1:]
	}
	if len(args) > 2 && args[0] == "-in" {
		where, args = args[1], args[2:]
	}
	for _, addr := range args {
		var l net.Listener
		open := func() (err error) {
			l, err = net.Listen("tcp", addr)
			return err
		}
		if where == "host" {
			ts.Check(open()) // without root a script has no namespace to go to
		} else {
			ts.Check(inside(place(ts, where), open))
		}
		ts.Defer(func() { l.Close() })
		go accept(l, serve)
	}
}

// accept serves each connection until the listener is closed.
func accept(l net.Listener, serve func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			serve(c)
		}()
	}
}

// echo sends back what comes.
func echo(c net.Conn) { _, _ = io.Copy(c, c) }

// speak greets again and again, until the connection is closed.
func speak(c net.Conn) {
	for {
		if _, err := c.Write([]byte("who is there?\n")); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// line is one stream of exchanges with a service: on one connection that lasts, or each on a
// connection of its own.
type line struct {
	name  string
	done  atomic.Int64          // exchanges
	fault atomic.Pointer[error] // what ended it
}

// stallAfter is how long an exchange may take: a lost SYN is sent again after one second and after
// three.
const stallAfter = 8 * time.Second

// exchange has a service repeat a few bytes.
func exchange(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(stallAfter))
	sent := []byte("is anybody there?\n")
	if _, err := c.Write(sent); err != nil {
		return err
	}
	got := make([]byte, len(sent))
	_, err := io.ReadFull(c, got)
	return err
}

// lasting talks on one connection until the script ends.
func (l *line) lasting(addr string, end <-chan struct{}) error {
	c, err := net.DialTimeout("tcp", addr, stallAfter)
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		if err := exchange(c); err != nil {
			return err
		}
		l.done.Add(1)
		select {
		case <-end:
			return nil
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// listening only hears what a service says on one connection until the script ends.
func (l *line) listening(addr string, end <-chan struct{}) error {
	c, err := net.DialTimeout("tcp", addr, stallAfter)
	if err != nil {
		return err
	}
	defer c.Close()
	for heard := make([]byte, 100); ; l.done.Add(1) {
		_ = c.SetDeadline(time.Now().Add(stallAfter))
		if _, err := c.Read(heard); err != nil {
			return err
		}
		select {
		case <-end:
			return nil
		default:
		}
	}
}

// fresh opens one connection after the other until the script ends.
func (l *line) fresh(addr string, end <-chan struct{}) error {
	for {
		c, err := net.DialTimeout("tcp", addr, stallAfter)
		if err != nil {
			return err
		}
		err = exchange(c)
		c.Close()
		if err != nil {
			return err
		}
		l.done.Add(1)
		select {
		case <-end:
			return nil
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// traffic [-listens] FROM ADDR... has clients at FROM, a peer or "host", talk to services until the script ends:
// for each address on two connections that last and on ever new ones. With -listens they only hear what the services
// say, on ten connections.
func traffic(ts *testscript.TestScript, neg bool, args []string) {
	kinds := []string{"lasting", "lasting", "fresh"}
	if len(args) > 0 && args[0] == "-listens" {
		kinds, args = slices.Repeat([]string{"listening"}, 10), args[1:]
	}
	if neg || len(args) < 2 {
		ts.Fatalf("usage: traffic [-listens] FROM ADDR...")
	}
	from := place(ts, args[0])
	s := ts.Value(ofScript{}).(*script)
	end := make(chan struct{})
	var running sync.WaitGroup
	ts.Defer(func() { close(end); running.Wait() })
	for _, addr := range args[1:] {
		for _, kind := range kinds {
			l := &line{name: fmt.Sprintf("%s %s to %s", kind, args[0], addr)}
			talk := map[string]func(string, <-chan struct{}) error{
				"lasting": l.lasting, "fresh": l.fresh, "listening": l.listening}[kind]
			s.lines = append(s.lines, l)
			running.Go(func() {
				if err := inside(from, func() error { return talk(addr, end) }); err != nil {
					l.fault.Store(&err)
				}
			})
		}
	}
	served(ts, false, nil)
}

// served waits until every line of traffic has got an answer to what it asked after now. No line may
// ever have been broken.
func served(ts *testscript.TestScript, neg bool, _ []string) {
	if neg {
		ts.Fatalf("usage: served")
	}
	s := ts.Value(ofScript{}).(*script)
	before := make([]int64, len(s.lines))
	for i, l := range s.lines {
		before[i] = l.done.Load()
	}
	end := time.Now().Add(patience)
	for i, l := range s.lines {
		// One exchange may have been under way.
		for l.done.Load() < before[i]+2 {
			if fault := l.fault.Load(); fault != nil {
				ts.Fatalf("%s: %v after %d answers", l.name, *fault, l.done.Load())
			}
			if time.Now().After(end) {
				ts.Fatalf("%s: no answer", l.name)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// sources PEER ADDR... has a peer count from now on what comes to it from any source but these, and TCP resets.
// Without arguments it sees that no peer has counted any. It says where a packet leaves with an address that is not
// to be seen there, before anything drops it as a martian.
func sources(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 1 {
		ts.Fatalf("usage: sources [PEER ADDR...]")
	}
	s := ts.Value(ofScript{}).(*script)
	if len(args) == 0 {
		for _, name := range s.watch {
			ts.Check(inside(place(ts, name), func() error {
				out, err := exec.Command("nft", "list", "counters", "table", "inet", "sources").CombinedOutput()
				if err == nil && strings.Count(string(out), "packets 0 ") != 2 {
					err = fmt.Errorf("seen at %s: %s", name, out)
				}
				return err
			}))
		}
		return
	}
	four, six := []string{"127.0.0.1"}, []string{"fe80::/10", "::"}
	for _, addr := range args[1:] {
		if strings.Contains(addr, ":") {
			six = append(six, addr)
		} else {
			four = append(four, addr)
		}
	}
	rules := fmt.Sprintf(`table inet sources {
		counter martians { }
		counter resets { }
		chain in {
			type filter hook prerouting priority -450
			iifname uplink ip saddr != { %s } counter name martians
			iifname uplink ip6 saddr != { %s } counter name martians
			iifname uplink tcp flags & rst == rst counter name resets
		}
	}`, strings.Join(four, ", "), strings.Join(six, ", "))
	s.watch = append(s.watch, args[0])
	ts.Check(inside(place(ts, args[0]), func() error {
		load := exec.Command("nft", "-f", "-")
		load.Stdin = strings.NewReader(rules)
		if out, err := load.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w\n%s", err, out)
		}
		return nil
	}))
}

// flood FROM ADDR PER_SECOND sends UDP packets from ever new addresses of 198.18.0.0/15 until the
// script ends.
func flood(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: flood FROM ADDR PER_SECOND")
	}
	to, err := netip.ParseAddrPort(args[1])
	ts.Check(err)
	rate, err := strconv.Atoi(args[2])
	ts.Check(err)
	fd := -1
	ts.Check(inside(place(ts, args[0]), func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	}))
	end, ended := make(chan struct{}), make(chan struct{})
	ts.Defer(func() { close(end); <-ended; unix.Close(fd) })
	go func() {
		defer close(ended)
		const burst = 20
		tick := time.NewTicker(burst * time.Second / time.Duration(rate))
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
			}
			for range burst {
				_ = unix.Sendto(fd, spoofed(to), 0, &unix.SockaddrInet4{Addr: to.Addr().As4()})
			}
		}
	}()
}

// spoofed returns a UDP packet from a random address. The kernel fills in the checksum of the IPv4
// header; UDP needs none over IPv4.
func spoofed(to netip.AddrPort) []byte {
	p := make([]byte, 28)
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	binary.BigEndian.PutUint32(p[12:], 198<<24|18<<16|rand.Uint32N(1<<17))
	copy(p[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(p[20:], uint16(1024+rand.IntN(60000)))
	binary.BigEndian.PutUint16(p[22:], to.Port())
	binary.BigEndian.PutUint16(p[24:], 8)
	return p
}

// status asks the daemon of ctguard.toml.
func status(ts *testscript.TestScript) control.Status {
	// Not with ts.Exec, which would write each of many answers down.
	ask := exec.Command("ctguard", "status", "--json", "--config", "ctguard.toml")
	ask.Dir = ts.MkAbs(".")
	answer, err := ask.Output()
	ts.Check(err)
	var s control.Status
	ts.Check(json.Unmarshal(answer, &s))
	return s
}

// hold LEVEL|STEP|top pins the level of the daemon of ctguard.toml, by number, by the last step that
// is engaged there or as high as it goes, and waits until that is done: every step up to it is
// engaged or says in one line why it is skipped, and every TCP service is untracked or says why not.
func hold(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: hold LEVEL|STEP|top")
	}
	steps := status(ts).Steps
	level := 1 + slices.IndexFunc(steps, func(s policy.StepStatus) bool { return string(s.Name) == args[0] })
	if args[0] == "top" {
		level = len(steps)
	} else if n, err := strconv.Atoi(args[0]); err == nil {
		level = n
	} else if level == 0 {
		ts.Fatalf("there is no step %q", args[0])
	}
	pin(ts, level)
}

// climb does the same with every level in turn, and sees that everybody is served at each.
func climb(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: climb")
	}
	for level := range status(ts).Steps {
		pin(ts, level+1)
		served(ts, false, nil)
	}
}

// pin has the daemon hold a level and waits until it does; the log says how each step stands there.
func pin(ts *testscript.TestScript, level int) {
	ts.Check(ts.Exec("ctguard", "hold", strconv.Itoa(level), "--for", "5m", "--reason", "test", "--config",
		"ctguard.toml"))
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		s := status(ts)
		waiting := unsettled(s, level)
		if waiting == "" {
			for _, step := range s.Steps[:level] {
				ts.Logf("level %d: %s: skipped: %q, %s", level, step.Name, step.Skipped, step.Reason)
			}
			for _, one := range s.Selectors {
				ts.Logf("level %d: %s: %s %s", level, one.Selector, one.Stage, one.Refused)
			}
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("level %d: %s", level, waiting)
		}
	}
}

// unsettled says what is still to come until a level is held; it is empty when nothing is.
func unsettled(s control.Status, level int) string {
	if s.Level != level || s.Mode != "hold" {
		return fmt.Sprintf("it is %s at level %d", s.Mode, s.Level)
	}
	if len(s.Degraded) > 0 {
		return strings.Join(s.Degraded, "\n")
	}
	untrack := false
	for _, step := range s.Steps[:level] {
		if !step.Engaged || strings.Contains(step.Skipped, "\n") || step.Skipped == "" && step.Reason == "" {
			return fmt.Sprintf("step %+v", step)
		}
		untrack = untrack || step.Name == policy.Notrack && step.Skipped == ""
	}
	for _, one := range s.Selectors {
		if untrack && strings.HasPrefix(one.Selector, "tcp/") && one.Stage != policy.Freed.String() && one.Refused == "" {
			return fmt.Sprintf("%s is %s", one.Selector, one.Stage)
		}
	}
	return ""
}
