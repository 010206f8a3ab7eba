// Package packet builds and reads the few Ethernet frames the lab needs: TCP, UDP
// and protocols without ports over IPv4 and IPv6, checksums included.
//
// Builders append to a caller's buffer, so a flood allocates nothing per packet.
// Addresses outside the documentation ranges are refused by Documentation, which
// every flood asks before it sends.
package packet
