package main

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"

	"ctguard/nft"
)

// How long nobody may be guarded while one process follows another, at the best of several times and in the middle of
// them, for this machine does other things.
const (
	gapAllowed   = 100 * time.Millisecond
	usualAllowed = 200 * time.Millisecond
)

// Between the last rule of a daemon that is asked to end and the first one of the next, which comes back to its level,
// little time passes.
func TestUpgradeGap(t *testing.T) {
	if testing.Short() {
		t.Skip("the race detector's clock says little")
	}
	h := newHost(t)
	h.start()
	h.hold(8)
	var gaps []time.Duration
	for range 5 {
		// For so long the kernel takes the namespaces down that a start tries things in, and nothing tells when it is done.
		time.Sleep(time.Second)
		gone, back := watchTable(t)
		h.stop()
		h.launch(h.program, nil)
		gaps = append(gaps, (<-back).Sub(<-gone))
		h.ready()
		h.until("level 8", func() bool { return h.status().Level == 8 })
	}
	h.stop()
	slices.Sort(gaps)
	t.Log("unguarded for", gaps)
	if best, usual := gaps[0], gaps[len(gaps)/2]; best > gapAllowed || usual > usualAllowed {
		t.Errorf("unguarded for %s, in the middle %s; want %s and %s at most", best, usual, gapAllowed, usualAllowed)
	}
}

// watchTable tells when the table inet ctguard is gone, and when it is there again.
func watchTable(t *testing.T) (gone, back <-chan time.Time) {
	t.Helper()
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		t.Fatal(err)
	}
	ends := [2]chan time.Time{make(chan time.Time, 1), make(chan time.Time, 1)}
	go func() {
		defer conn.CloseLasting()
		for i, want := range []bool{false, true} {
			for there(conn) != want && t.Context().Err() == nil {
				time.Sleep(time.Millisecond)
			}
			ends[i] <- time.Now()
		}
	}()
	return ends[0], ends[1]
}

func there(conn *nftables.Conn) bool {
	table, err := conn.ListTableOfFamily(nft.Name, nftables.TableFamilyINet)
	return err == nil && table != nil
}

// What an earlier process found the kernel to be able to do counts at once, and is tried again: where it is no longer
// true the status says so, and the next start knows better.
func TestOtherKernel(t *testing.T) {
	h := newHost(t)
	h.startTried()
	h.stop()
	file := filepath.Join(h.state, "kernel.json")
	found, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	other := strings.Replace(string(found), `"Synproxy":true`, `"Synproxy":false`, 1)
	if other == string(found) {
		t.Fatalf("%s has no synproxy", found)
	}
	if err := os.WriteFile(file, []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	said := func() bool {
		return slices.ContainsFunc(h.status().Degraded, func(d string) bool { return strings.Contains(d, "other things") })
	}
	h.startTried()
	if !said() {
		t.Errorf("degraded: %v", h.status().Degraded)
	}
	if now, _ := os.ReadFile(file); string(now) != string(found) {
		t.Errorf("kept is %s, want %s", now, found)
	}
	h.stop()
	h.startTried()
	if said() {
		t.Errorf("still degraded: %v", h.status().Degraded)
	}
	h.stop()
}

// startTried starts the daemon and waits until it tells systemd that it is ready: then all is tried out.
func (h *host) startTried() {
	h.Helper()
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(h.dir, "notify"), Net: "unixgram"})
	if err != nil {
		h.Fatal(err)
	}
	defer os.Remove(l.LocalAddr().String())
	defer l.Close()
	h.launch(h.program, []string{"NOTIFY_SOCKET=" + l.LocalAddr().String()})
	_ = l.SetReadDeadline(time.Now().Add(patience))
	for b := make([]byte, 1024); ; {
		n, err := l.Read(b)
		if err != nil {
			h.Fatalf("it does not get ready: %v; %s", err, h.log)
		}
		if strings.Contains(string(b[:n]), "READY=1") {
			return
		}
	}
}
