package packet

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/net/bpf"
)

func header(src, dst string) Header {
	return Header{
		SrcMAC: MAC{2, 0, 0, 0, 0, 1}, DstMAC: MAC{2, 0, 0, 0, 0, 2},
		Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), SrcPort: 1234, DstPort: 80,
	}
}

func TestTCPRoundTrip(t *testing.T) {
	for _, h := range []Header{header("198.18.0.1", "203.0.113.1"), header("2001:db8::1", "2001:db8::2")} {
		want := Segment{Flags: SYN | ACK, Seq: 0xfffffffe, Ack: 7}
		gotHeader, got, ok := ParseTCP(AppendTCP(nil, h, want, []byte("odd")))
		if !ok || gotHeader != h || got != want {
			t.Errorf("parsed %v %v %v, built %v %v", gotHeader, got, ok, h, want)
		}
	}
}

// A segment with its right checksum, summed with its pseudo header, gives zero.
func TestChecksumsSumToZero(t *testing.T) {
	for _, h := range []Header{header("198.18.0.1", "203.0.113.1"), header("2001:db8::1", "2001:db8::2")} {
		for _, payload := range []string{"", "a", "ab", "odd payload"} {
			ip := ip4Len
			if h.Src.Is6() {
				ip = ip6Len
			}
			tcp := AppendTCP(nil, h, Segment{Flags: SYN}, []byte(payload))
			if got := transportSum(h, ProtoTCP, tcp[ethLen+ip:]); got != 0 {
				t.Errorf("tcp from %v with %q: checksum is off by %#x", h.Src, payload, got)
			}
			udp := AppendUDP(nil, h, []byte(payload))
			if got := transportSum(h, ProtoUDP, udp[ethLen+ip:]); got != 0 {
				t.Errorf("udp from %v with %q: checksum is off by %#x", h.Src, payload, got)
			}
			other := AppendOther(nil, h, ProtoTest, []byte(payload))
			if got := len(other); got != ethLen+ip+len(payload) {
				t.Errorf("other from %v with %q: %d bytes", h.Src, payload, got)
			}
			if h.Src.Is4() && fold(sum(0, other[ethLen:ethLen+ip])) != 0 {
				t.Errorf("ip header checksum of another protocol from %v is off", h.Src)
			}
			if h.Src.Is4() && fold(sum(0, udp[ethLen:ethLen+ip])) != 0 {
				t.Errorf("ip header checksum of %v is off", h.Src)
			}
		}
	}
}

// RFC 1071 has this example.
func TestSumOfRFC1071(t *testing.T) {
	got := ^fold(sum(0, []byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}))
	if got != 0xddf2 {
		t.Errorf("sum is %#x, want 0xddf2", got)
	}
}

func TestUDPChecksumIsNeverZero(t *testing.T) {
	h := header("198.18.0.1", "203.0.113.1")
	for i := range 1 << 16 {
		var payload [2]byte
		binary.BigEndian.PutUint16(payload[:], uint16(i))
		b := AppendUDP(nil, h, payload[:])
		if binary.BigEndian.Uint16(b[ethLen+ip4Len+6:]) == 0 {
			t.Fatalf("payload %#x gives checksum zero, which means none", i)
		}
	}
}

func TestParseRefusesWhatItDoesNotKnow(t *testing.T) {
	whole := AppendTCP(nil, header("198.18.0.1", "203.0.113.1"), Segment{}, nil)
	for n := range whole {
		if _, _, ok := ParseTCP(whole[:n]); ok && n < ethLen+ip4Len+tcpLen {
			t.Errorf("parsed a frame cut to %d bytes", n)
		}
	}
	if _, _, ok := ParseTCP(AppendUDP(nil, header("198.18.0.1", "203.0.113.1"), nil)); ok {
		t.Error("parsed UDP as TCP")
	}
}

func TestDocumentation(t *testing.T) {
	for p, want := range map[string]bool{
		"192.0.2.0/24": true, "198.18.0.0/15": true, "198.19.7.0/24": true, "2001:db8:a000::/48": true,
		"198.18.0.0/14": false, "8.8.8.8/32": false, "0.0.0.0/0": false, "::/0": false, "2001:db9::/32": false,
		"10.0.0.0/8": false, "127.0.0.1/32": false,
	} {
		if got := Documentation(netip.MustParsePrefix(p)); got != want {
			t.Errorf("%s: documentation is %v, want %v", p, got, want)
		}
	}
}

// The filter passes exactly the frames whose source lies in one of the prefixes.
func TestFromAny(t *testing.T) {
	vm, err := bpf.NewVM(FromAny([]netip.Prefix{
		netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("198.18.0.0/16"),
		netip.MustParsePrefix("198.19.0.7/32"),
	}))
	if err != nil {
		t.Fatal(err)
	}
	for src, want := range map[string]bool{
		"203.0.113.9": true, "198.18.255.1": true, "198.19.0.7": true, "198.19.0.8": false, "192.0.2.1": false,
	} {
		n, err := vm.Run(AppendUDP(nil, header(src, "203.0.113.1"), nil))
		if err != nil || (n > 0) != want {
			t.Errorf("from %s: passes %d bytes (%v), want to pass: %v", src, n, err, want)
		}
	}
}

func TestDescribe(t *testing.T) {
	h := header("198.18.0.1", "203.0.113.1")
	for want, frame := range map[string][]byte{
		"TCP 198.18.0.1:1234 to 203.0.113.1:80, flags 0x4": AppendTCP(nil, h, Segment{Flags: RST}, nil),
		"protocol 17, 198.18.0.1 to 203.0.113.1":           AppendUDP(nil, h, nil),
		"a frame of 3 bytes":                               {1, 2, 3},
	} {
		if got := Describe(frame); got != want {
			t.Errorf("described as %q, want %q", got, want)
		}
	}
}

func BenchmarkAppendTCP(b *testing.B) {
	h := header("198.18.0.1", "203.0.113.1")
	buf := make([]byte, 0, 128)
	b.ReportAllocs()
	for b.Loop() {
		AppendTCP(buf, h, Segment{Flags: SYN}, nil)
	}
}
