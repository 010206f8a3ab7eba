package conntrack

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntracktest"
)

const udpTimeout = "nf_conntrack_udp_timeout"

// A conversation that goes on after it was silent for longer than a floor is seen by the next scan, with how long that
// was.
func TestSilenceOnTheWire(t *testing.T) {
	table, peer := openTracking(t)
	if err := os.WriteFile(sysctlRoot+udpTimeout, []byte("20"), 0o600); err != nil {
		t.Fatal(err)
	}
	var (
		far, near net.Conn
		err       error
	)
	peer.Do(func() { far, err = net.ListenUDP("udp", &net.UDPAddr{IP: conntracktest.There4.AsSlice(), Port: 4500}) })
	if err == nil {
		t.Cleanup(func() { far.Close() })
		near, err = net.Dial("udp", netip.AddrPortFrom(conntracktest.There4, 4500).String())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close() })
	asked := SilenceOptions{InForce: map[string]int{udpTimeout: 20}, Floors: map[string]int{udpTimeout: 3}}
	scan := func() map[string]int {
		c, err := table.Scan(t.Context(), ScanOptions{Silences: &asked})
		if err != nil {
			t.Fatal(err)
		}
		return c.Silences
	}
	scan() // what was before the first scan may have been set under other timeouts
	speak := func() {
		if _, err := near.Write([]byte("alive")); err != nil {
			t.Fatal(err)
		}
	}
	speak()
	began := time.Now()
	for len(table.silences.before) == 0 {
		if found := scan(); len(found) > 0 || time.Since(began) > 10*time.Second {
			t.Fatalf("after %s: %v", time.Since(began), found)
		}
		time.Sleep(50 * time.Millisecond)
	}
	silent := int(time.Since(began).Seconds())
	speak()
	if found := scan(); found[udpTimeout] < 3 || found[udpTimeout] > silent+1 {
		t.Errorf("%v after %d seconds of silence", found, silent)
	}
}

// What tells nothing about a silence counts for none.
func TestNoSilence(t *testing.T) {
	const established = tcpTimeout + "established"
	start := time.Unix(1000, 0)
	asked := SilenceOptions{Floors: map[string]int{established: 100, udpTimeout: 30},
		InForce: map[string]int{established: 1000, udpTimeout: 60, tcpTimeout + "max_retrans": 200}}
	tcp := func(id byte, left uint32) entry {
		e := entry{timeout: left, state: tcpEstablished, protoInfo: protoInfoTCP, status: statusSeenReply | statusAssured}
		e.orig.proto = unix.IPPROTO_TCP
		return identified(e, id)
	}
	udp := func(id byte, left uint32) entry {
		e := entry{timeout: left}
		e.orig.proto = unix.IPPROTO_UDP
		return identified(e, id)
	}
	other := asked
	other.InForce = map[string]int{established: 900, udpTimeout: 60, tcpTimeout + "max_retrans": 200}
	for _, one := range []struct {
		name          string
		first, second entry
		again         SilenceOptions
		uptime        time.Duration // before the first look
		want          int
	}{
		{"goes on", tcp(1, 700), tcp(1, 999), asked, time.Hour, 300},
		{"still silent", tcp(1, 700), tcp(1, 690), asked, time.Hour, 0},
		{"another one", tcp(1, 700), tcp(2, 999), asked, time.Hour, 0},
		{"as short as everybody's", tcp(1, 950), tcp(1, 999), asked, time.Hour, 0},
		{"set under timeouts that nobody saw", tcp(1, 700), tcp(1, 999), asked, 298 * time.Second, 0},
		{"other timeouts meanwhile", tcp(1, 700), tcp(1, 899), other, time.Hour, 0},
		{"more left than the timeout", tcp(1, 1700), tcp(1, 999), asked, time.Hour, 0},
		{"repeats itself", tcp(1, 150), tcp(1, 999), asked, time.Hour, 0},
		{"another timeout's", udp(1, 20), tcp(1, 999), asked, time.Hour, 0},
	} {
		var l silences
		l.begin(asked, start)
		l.end()
		l.begin(asked, start.Add(one.uptime))
		l.look(&one.first)
		l.end()
		l.begin(one.again, start.Add(one.uptime+10*time.Second))
		l.look(&one.second)
		if found := l.end(); found[established] != one.want || len(found) > 1 {
			t.Errorf("%s: %v, want %d", one.name, found, one.want)
		}
	}
}

// identified gives an entry the kernel's id.
func identified(e entry, id byte) entry {
	e.message = []byte{attrLen + 4, 0, 0, 0, 0, 0, 0, id}
	e.idSpan = span{0, uint32(len(e.message))}
	return e
}
