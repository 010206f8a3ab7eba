package policy

import (
	"maps"
	"math"
	"time"
)

// timeoutFloors returns the shortest timeout, in seconds, that tighten sets for each state. What is
// not listed is left alone. Entries that carry a live conversation keep what the RFCs ask of a NAT:
// RFC 5382 REQ-5 (TCP established, 2 h 4 min) and RFC 4787 REQ-5 (UDP, 2 min).
func timeoutFloors(p Profile) map[string]int {
	floors := map[string]int{
		"nf_conntrack_tcp_timeout_syn_sent":           10,
		"nf_conntrack_tcp_timeout_syn_recv":           10,
		"nf_conntrack_tcp_timeout_established":        7440,
		"nf_conntrack_tcp_timeout_fin_wait":           20,
		"nf_conntrack_tcp_timeout_close_wait":         20,
		"nf_conntrack_tcp_timeout_last_ack":           10,
		"nf_conntrack_tcp_timeout_time_wait":          10,
		"nf_conntrack_tcp_timeout_close":              5,
		"nf_conntrack_tcp_timeout_max_retrans":        60,
		"nf_conntrack_tcp_timeout_unacknowledged":     60,
		"nf_conntrack_udp_timeout":                    10,
		"nf_conntrack_udp_timeout_stream":             120,
		"nf_conntrack_icmp_timeout":                   5,
		"nf_conntrack_icmpv6_timeout":                 5,
		"nf_conntrack_generic_timeout":                60,
		"nf_conntrack_gre_timeout":                    10,
		"nf_conntrack_gre_timeout_stream":             120,
		"nf_conntrack_sctp_timeout_closed":            5,
		"nf_conntrack_sctp_timeout_cookie_wait":       3,
		"nf_conntrack_sctp_timeout_cookie_echoed":     3,
		"nf_conntrack_sctp_timeout_established":       210,
		"nf_conntrack_sctp_timeout_shutdown_sent":     3,
		"nf_conntrack_sctp_timeout_shutdown_recd":     3,
		"nf_conntrack_sctp_timeout_shutdown_ack_sent": 3,
		"nf_conntrack_sctp_timeout_heartbeat_sent":    10,
		"nf_conntrack_sctp_timeout_heartbeat_acked":   210,
		"nf_conntrack_dccp_timeout_request":           20,
		"nf_conntrack_dccp_timeout_respond":           20,
		"nf_conntrack_dccp_timeout_partopen":          60,
		"nf_conntrack_dccp_timeout_open":              7440,
		"nf_conntrack_dccp_timeout_closereq":          10,
		"nf_conntrack_dccp_timeout_closing":           10,
		"nf_conntrack_dccp_timeout_timewait":          10,
	}
	if p == NATGateway {
		maps.Copy(floors, gatewayFloors)
	}
	return floors
}

// gatewayFloors are longer where the other end is far away and an entry that is gone too soon is a mapping
// that is lost: what comes late finds nobody.
var gatewayFloors = map[string]int{
	"nf_conntrack_tcp_timeout_syn_sent":   20,
	"nf_conntrack_tcp_timeout_syn_recv":   20,
	"nf_conntrack_tcp_timeout_fin_wait":   60,
	"nf_conntrack_tcp_timeout_close_wait": 60,
	"nf_conntrack_tcp_timeout_last_ack":   30,
	"nf_conntrack_tcp_timeout_time_wait":  30,
	"nf_conntrack_udp_timeout":            20,
	"nf_conntrack_icmp_timeout":           10,
	"nf_conntrack_icmpv6_timeout":         10,
	"nf_conntrack_gre_timeout":            20,
}

// scaleSteps is how finely timeouts follow pressure: each new scale rewrites the sysctls and every
// entry, so it moves in quarters.
const scaleSteps = 4

// tightener scales timeouts with pressure, as pf's adaptive timeouts do: the administrator's value
// at the enter mark, the floor when the table is full.
type tightener struct {
	peak   float64 // the worst pressure of the last hold
	peakAt time.Time
}

// settings returns the timeouts for a pressure. It holds the worst pressure for one hold, so that a
// pulse doesn't rewrite the table with each of its edges.
func (t *tightener) settings(now time.Time, pressure float64, step Step, c Config, admin map[string]int) map[string]int {
	if pressure >= t.peak || now.Sub(t.peakAt) >= step.Hold {
		t.peak, t.peakAt = pressure, now
	}
	x := min(1, max(0, (t.peak-step.Enter)/(100-step.Enter)))
	if step.Enter >= 100 {
		x = 1
	}
	x = math.Ceil(x*scaleSteps) / scaleSteps
	settings := make(map[string]int)
	for name, floor := range c.Floors {
		if value, known := admin[name]; known && value > floor && x > 0 {
			settings[name] = floor + int(math.Round(float64(value-floor)*(1-x)))
		}
	}
	return settings
}
