package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntrackfill"
	"ctguard/agent/conntrack/conntracktest"
)

// The scripts in testdata/script run the real program, each in a network namespace of its own, with
// its own state directory and socket. What they claim about the kernel is seen with nft and /proc.
func TestScripts(t *testing.T) {
	if os.Getenv("CTGUARD_REQUIRE_PRIVILEGED") == "1" {
		conntracktest.Privileged(t, "nft", "ip", "unshare", "setpriv", "promtool", "tmux", "iptables-nft", "iptables-legacy",
			"ufw", "firewalld", "dbus-daemon")
	}
	testscript.Run(t, testscript.Params{
		Dir:   "testdata/script",
		Setup: setUp,
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"await":     await,
			"browse":    browse,
			"climb":     climb,
			"dashboard": dashboard,
			"exits":     exits,
			"fill":      fill,
			"findings":  findings,
			"flood":     flood,
			"handles":   handles,
			"hold":      hold,
			"hostfile":  hostfile,
			"keepmax":   keepMax,
			"keys":      keys,
			"listen":    listen,
			"likewise":  likewise,
			"listing":   listing,
			"listings":  listings,
			"metrics":   metrics,
			"netns":     netns,
			"notify":    notify,
			"oneway":    oneway,
			"page":      page,
			"peer":      peer,
			"pixel":     pixel,
			"resize":    resize,
			"screen":    screen,
			"served":    served,
			"signal":    sendSignal,
			"slowline":  slowline,
			"snapshot":  snapshot,
			"sources":   sources,
			"terminal":  terminal,
			"traffic":   traffic,
			"wrote":     wrote,
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"ctguard": main})
}

// setUp moves a script into a network namespace of its own. Everything that the script starts
// inherits it from this thread, which ends with the script: it is never unlocked.
func setUp(env *testscript.Env) error {
	// Scripts also run the program as nobody.
	program, err := exec.LookPath("ctguard")
	if err != nil {
		return err
	}
	for _, dir := range []string{filepath.Dir(filepath.Dir(program)), filepath.Dir(env.WorkDir), env.WorkDir} {
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	examples, err := filepath.Abs(filepath.Join(top, "docs/examples"))
	if err != nil {
		return err
	}
	env.Setenv("EXAMPLES", examples)
	if os.Geteuid() != 0 {
		return nil
	}
	if err := conntrackfill.Enter(); err != nil {
		return err
	}
	here, err := thisNamespace()
	if err != nil {
		return err
	}
	env.Defer(func() { here.Close() })
	env.Values[ofScript{}] = &script{places: map[string]*os.File{"host": here}}
	return ip("link set lo up")
}

// patience bounds every wait for something that must happen.
const patience = 30 * time.Second

// await PATTERN program args... runs a program again and again until its output matches; with ! until
// it no longer does.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: [!] await PATTERN program [args...]")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		err := ts.Exec(args[1], args[2:]...)
		if err == nil && pattern.MatchString(ts.ReadFile("stdout")) != neg {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s: %q in its output is still %t (%v)", strings.Join(args[1:], " "), args[0], neg, err)
		}
	}
}

// tableSize is for whoever changes the size of every namespace's table, and for audits that judge it meanwhile.
var tableSize sync.RWMutex

// keepmax sees to it that the size of every namespace's table, which a script is about to change, is put back
// however the script ends. It sets $initial to the network namespace that the tests were started in.
func keepMax(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Defer(aloneWithTheTable(ts))
	tableSize.Lock()
	ts.Defer(tableSize.Unlock)
	initial := fmt.Sprintf("/proc/%d/ns/net", os.Getppid())
	ts.Setenv("initial", initial)
	for _, path := range []string{"/proc/sys/net/netfilter/nf_conntrack_max",
		"/sys/module/nf_conntrack/parameters/hashsize"} {
		before, err := os.ReadFile(path)
		ts.Check(err)
		ts.Defer(func() {
			// The file in /proc can be written in the initial namespace only.
			out, err := exec.Command("nsenter", "--net="+initial, "sh", "-c",
				"echo "+strings.TrimSpace(string(before))+" >"+path).CombinedOutput()
			if err != nil {
				ts.Logf("put %s back: %v: %s", path, err, out)
			}
		})
	}
}

// labLock is what the attack lab holds while it runs: an abstract socket.
const labLock = "@ctguard-ctlab"

// aloneWithTheTable waits until no lab runs, and keeps others from starting until what it returns is called.
func aloneWithTheTable(ts *testscript.TestScript) (release func()) {
	for end := time.Now().Add(10 * patience); ; time.Sleep(100 * time.Millisecond) {
		l, err := net.Listen("unix", labLock)
		if err == nil {
			return func() { l.Close() }
		}
		if time.Now().After(end) {
			ts.Fatalf("the lab does not end: %v", err)
		}
	}
}

// exits CODE program args... runs a program that must end with an exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE program [args...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// fill N makes entries of N sources, one assured TCP connection each; fill N ADDR makes N of one
// source.
func fill(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	src := netip.MustParseAddr("203.0.113.0")
	if len(args) > 1 {
		src = netip.MustParseAddr(args[1])
	}
	dst := netip.MustParseAddr("198.51.100.1")
	if src.Is6() {
		dst = netip.MustParseAddr("2001:db8:ffff::1")
	}
	made, err := conntrackfill.Fill(func(yield func(conntrackfill.Flow) bool) {
		for i := range n {
			if len(args) == 1 {
				src = src.Next()
			}
			if !yield(conntrackfill.Flow{Src: src, Dst: dst, Proto: unix.IPPROTO_TCP, SrcPort: uint16(1024 + i), DstPort: 80,
				State: 3, Status: conntrackfill.SeenReply | conntrackfill.Assured, Timeout: 3600}) {
				return
			}
		}
	})
	ts.Check(err)
	if made != n {
		ts.Fatalf("made %d of %d entries", made, n)
	}
}

// metrics SOCKET FILE fetches the metrics over the control socket.
func metrics(ts *testscript.TestScript, _ bool, args []string) {
	client := http.Client{Transport: &http.Transport{Dial: func(string, string) (net.Conn, error) {
		return net.Dial("unix", ts.MkAbs(args[0]))
	}}}
	defer client.CloseIdleConnections()
	response, err := client.Get("http://ctguard/metrics")
	ts.Check(err)
	defer response.Body.Close()
	f, err := os.Create(ts.MkAbs(args[1]))
	ts.Check(err)
	_, err = f.ReadFrom(response.Body)
	ts.Check(errors.Join(err, f.Close()))
}

// signal NAME [N] sends a signal to the N-th program in the background; without N to the newest.
func sendSignal(ts *testscript.TestScript, _ bool, args []string) {
	programs := ts.BackgroundCmds()
	n := len(programs)
	if len(args) > 1 {
		var err error
		n, err = strconv.Atoi(args[1])
		ts.Check(err)
	}
	signal := unix.SignalNum("SIG" + args[0])
	if signal == 0 || n < 1 || n > len(programs) {
		ts.Fatalf("usage: signal NAME [N], with N programs in the background")
	}
	ts.Check(programs[n-1].Process.Signal(signal))
}

// counters is what a listing says differently each time: what rules have counted. nft and iptables
// write it each in its own way.
var counters = regexp.MustCompile(`packets \d+ bytes \d+|\[\d+:\d+\]`)

// ours is ctguard's own table, as nft lists it.
var ours = regexp.MustCompile(`(?ms)^table inet ctguard \{.*?^\}\n`)

// lasting is what stays as long as ctguard's table: chains with a hook come and go.
var lasting = regexp.MustCompile(`(?m)^table .*$|^\tchain .*\n(\t\ttype .*)?`)

// handles FILE writes down the numbers by which the kernel knows ctguard's table and its chains: one
// that was away for a moment comes back with another number.
func handles(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: handles FILE")
	}
	out, err := exec.Command("nft", "-a", "list", "table", "inet", "ctguard").CombinedOutput()
	if err != nil {
		ts.Fatalf("%s", out)
	}
	var numbers strings.Builder
	for _, found := range lasting.FindAllString(string(out), -1) {
		if !strings.Contains(found, " hook ") {
			numbers.WriteString(strings.TrimSpace(found) + "\n")
		}
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(numbers.String()), 0o600))
}

// listing FILE program args... writes down what a program lists: without counters, without comments,
// which have the date in them, and the whole ruleset without the table of ctguard.
func listing(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: listing FILE program [args...]")
	}
	program := strings.Join(args[1:], " ")
	ts.Check(ts.Exec(args[1], args[2:]...))
	text := ts.ReadFile("stdout")
	if program == "nft list ruleset" {
		text = ours.ReplaceAllString(text, "")
	}
	text = regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(text, "")
	if strings.TrimSpace(text) == "" {
		ts.Fatalf("%s lists nothing", program)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(counters.ReplaceAllString(text, "counted")), 0o600))
}

// snapshot FILE writes down the whole ruleset without its counters, and every setting of conntrack
// and of TCP that belongs to this namespace: those that are read-only here are another's, or counters.
func snapshot(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(hostState(ts)), 0o600))
}

// likewise waits until the ruleset and the settings are as they were at a snapshot.
func likewise(ts *testscript.TestScript, _ bool, args []string) {
	want, state := ts.ReadFile(args[0]), ""
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if state = hostState(ts); state == want {
			return
		}
	}
	ts.Fatalf("ruleset and settings are not as they were (-was +is):\n%s", cmp.Diff(want, state))
}

// hostState is what snapshot writes down.
func hostState(ts *testscript.TestScript) string {
	ruleset, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	ts.Check(err)
	text := counters.ReplaceAllString(string(ruleset), "counted")
	var settings []string
	for _, pattern := range []string{"/proc/sys/net/netfilter/*", "/proc/sys/net/ipv4/tcp_*"} {
		paths, err := filepath.Glob(pattern)
		ts.Check(err)
		settings = append(settings, paths...)
	}
	for _, path := range settings {
		info, err := os.Stat(path)
		ts.Check(err)
		if info.IsDir() || info.Mode().Perm()&0o200 == 0 {
			continue
		}
		if value, err := os.ReadFile(path); err == nil {
			text += fmt.Sprintf("%s = %s", filepath.Base(path), value)
		}
	}
	return text
}
