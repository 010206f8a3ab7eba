package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// hostfile PATH FILE puts a file or a directory of the script in the place of one of the host's, for
// what the script starts from here on.
func hostfile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: hostfile PATH FILE")
	}
	ts.Check(ownRun())
	ts.Check(unix.Mount(ts.MkAbs(args[1]), args[0], "", unix.MS_BIND, ""))
}

// findings [--quick] SEVERITY ID... sees that an audit finds exactly these of that severity or a greater
// one, in any order, and ends with the exit code of the greatest.
func findings(ts *testscript.TestScript, neg bool, args []string) {
	ask := []string{"audit", "--json", "--config", "ctguard.toml"}
	if len(args) > 0 && args[0] == "--quick" {
		ask, args = append(ask, "--quick"), args[1:]
	}
	names := []string{"ok", "info", "warning", "critical"}
	if neg || len(args) == 0 || !slices.Contains(names, args[0]) {
		ts.Fatalf("usage: findings [--quick] SEVERITY [ID...]")
	}
	tableSize.RLock()
	err := ts.Exec("ctguard", ask...)
	tableSize.RUnlock()
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	var report struct {
		Severity string
		Findings []struct{ ID, Severity string }
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &report))
	if want := map[string]int{"warning": 4, "critical": 5}[report.Severity]; code != want {
		ts.Fatalf("exit code %d with severity %s", code, report.Severity)
	}
	got := []string{}
	for _, f := range report.Findings {
		if slices.Index(names, f.Severity) >= slices.Index(names, args[0]) {
			got = append(got, f.ID)
		}
	}
	want := slices.Clone(args[1:])
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		ts.Fatalf("found %q, want %q", got, want)
	}
}

// oneway FROM ADDR N has N connections send something to ADDR, which never answers, ten times a second until
// the script ends: what a host on an asymmetric route sees of them.
func oneway(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: oneway FROM ADDR N")
	}
	to, err := netip.ParseAddrPort(args[1])
	ts.Check(err)
	n, err := strconv.Atoi(args[2])
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
		for i := 0; ; i++ {
			for port := range n {
				from := netip.AddrPortFrom(netip.MustParseAddr("198.18.0.1"), uint16(2000+port))
				_ = unix.Sendto(fd, acknowledgement(from, to, uint32(i)), 0, &unix.SockaddrInet4{Addr: to.Addr().As4()})
			}
			select {
			case <-end:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
}

// acknowledgement returns a TCP packet in the middle of a connection (RFC 9293, 3.1).
func acknowledgement(from, to netip.AddrPort, number uint32) []byte {
	p := make([]byte, 40)
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[12:], from.Addr().AsSlice())
	copy(p[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(p[20:], from.Port())
	binary.BigEndian.PutUint16(p[22:], to.Port())
	binary.BigEndian.PutUint32(p[24:], 1000+number)
	binary.BigEndian.PutUint32(p[28:], 1000)
	p[32], p[33] = 5<<4, 0x10 // five words of header; ACK
	binary.BigEndian.PutUint16(p[34:], 1024)
	sum := uint32(unix.IPPROTO_TCP + 20) // the pseudo-header's rest; the addresses are summed below
	for i := 12; i < len(p); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(p[36:], ^uint16(sum))
	return p
}
