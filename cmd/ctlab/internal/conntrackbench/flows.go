package conntrackbench

import (
	"encoding/binary"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntrackfill"
)

const (
	heavySources = 10
	heavyEntries = 30_000 // of each
	busy         = conntrackfill.SeenReply | conntrackfill.Assured

	tcpSynSent     = 1 // enum tcp_conntrack in include/uapi/linux/netfilter/nf_conntrack_tcp.h
	tcpSynRecv     = 2
	tcpEstablished = 3
	tcpTimeWait    = 7
)

// v4 and v6 number the addresses of one side.
func v4(net byte, i int) netip.Addr {
	b := [4]byte{net}
	binary.BigEndian.PutUint32(b[:], uint32(net)<<24|uint32(i))
	return netip.AddrFrom4(b)
}

func v6(net byte, i int) netip.Addr {
	b := [16]byte{0x20, 0x01, 0x0d, 0xb8, net}
	binary.BigEndian.PutUint32(b[4:], uint32(net)<<24|uint32(i))
	b[15] = 1
	return netip.AddrFrom16(b)
}

// flowOf is one flow of source i, told apart from the source's others by n.
func flowOf(i, n int, six bool) conntrackfill.Flow {
	f := conntrackfill.Flow{
		Src: v4(10, i), Dst: v4(198, n>>15), Proto: unix.IPPROTO_TCP,
		SrcPort: uint16(1024 + n&0x7fff), DstPort: [...]uint16{80, 443, 22, 53, 8080}[n%5],
	}
	if six {
		f.Src, f.Dst = v6(10, i), v6(198, n>>15)
	}
	return f
}

func heavySource(i int) netip.Prefix {
	if i%5 == 4 {
		return netip.PrefixFrom(v6(10, i), 64).Masked()
	}
	return netip.PrefixFrom(v4(10, i), 32)
}

// heavy makes the entries of the ten heavy sources: two of them IPv6, half of each unreplied.
func heavy(yield func(conntrackfill.Flow) bool) {
	for i := range heavySources {
		for n := range heavyEntries {
			f := flowOf(i, n, i%5 == 4)
			switch n % 10 {
			case 0, 1, 2, 3, 4:
				f.State, f.Timeout = tcpSynSent, 100
			case 5, 6:
				f.State, f.Status, f.Timeout = tcpSynRecv, conntrackfill.SeenReply, 60
			case 7:
				f.State, f.Status, f.Timeout = tcpTimeWait, busy, 120
			default:
				f.Proto, f.Status, f.Timeout = unix.IPPROTO_UDP, busy, uint32(1000+n)
			}
			if !yield(longer(f)) {
				return
			}
		}
	}
}

// longer gives a flow time enough to outlive the benchmark, in the order it had.
func longer(f conntrackfill.Flow) conntrackfill.Flow {
	f.Timeout += 20_000
	return f
}

// others makes n entries of ordinary sources: a quarter IPv6; of fourteen, ten established TCP, two
// UDP, one ICMP, one TIME_WAIT.
func others(n, sources int) iter.Seq[conntrackfill.Flow] {
	return func(yield func(conntrackfill.Flow) bool) {
		for k := range n {
			source, six := heavySources+k%sources, k%sources%4 == 3
			f := flowOf(source, k/sources, six)
			f.State, f.Status, f.Timeout = tcpEstablished, busy, 400_000
			switch k % 14 {
			case 0, 1:
				f.Proto, f.State, f.Status, f.Timeout = unix.IPPROTO_UDP, 0, 0, 30
			case 2:
				f.Proto, f.State, f.Status, f.Timeout = unix.IPPROTO_ICMP, 0, 0, 30
				if six {
					f.Proto = unix.IPPROTO_ICMPV6
				}
			case 3:
				f.State, f.Timeout = tcpTimeWait, 120
			}
			if !yield(longer(f)) {
				return
			}
		}
	}
}

// spoofed makes n entries of n sources.
func spoofed(n int) iter.Seq[conntrackfill.Flow] {
	return func(yield func(conntrackfill.Flow) bool) {
		for k := range n {
			f := flowOf(k, k%7, k%4 == 3)
			f.State, f.Timeout = tcpSynSent, 100
			if !yield(longer(f)) {
				return
			}
		}
	}
}

// onePercent makes n entries, of which fifty sources hold one hundredth each; every round makes
// different ones, so that they fall elsewhere in the kernel's hash.
func onePercent(n, round int) iter.Seq[conntrackfill.Flow] {
	return func(yield func(conntrackfill.Flow) bool) {
		for k := range n {
			source := k % 100
			if source >= 50 {
				source = 100 + k
			}
			f := flowOf(source, round*(n/100)+k/100, false)
			f.State, f.Timeout = tcpSynSent, 100
			if !yield(longer(f)) {
				return
			}
		}
	}
}
