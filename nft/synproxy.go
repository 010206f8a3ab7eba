package nft

// proxies reports whether some port of this host is behind synproxy.
func (b builder) proxies() bool { return len(b.posture.Synproxy) > len(b.inside) }

// cookies sees packets for this host before its own filter: conntrack calls the ACK that brings a
// cookie back invalid, and many filters drop that.
//
// The SYN is answered after the filter instead, in passed_in: only who may connect gets a cookie, and
// the connection that is opened for a cookie comes by way of lo, which most filters accept unseen.
//
// The ACK that completes that connection echoes a timestamp which the kernel has brought in line with the
// cookie's though it is the listener's own already (synproxy_send_server_ack in
// net/netfilter/nf_synproxy_core.c). Since 6.15 a listener refuses an echo of what it never sent
// (tcp_check_req in net/ipv4/tcp_minisocks.c), and the connection would wait for a second until
// the listener asks again. Without an echo there is nothing to refuse.
func (b builder) cookies() []rule {
	var list []rule
	for _, f := range b.inside {
		list = append(list, f.takes())
	}
	if !b.proxies() {
		return list
	}
	return append([]rule{
		newRule(inLoopback(), answersTCP(), destination.tcpServiceIn(proxied), fromElsewhere(), withoutEcho(), back()),
		newRule(inLoopback(), back()),
		newRule(ctInvalid(), answersTCP(), destination.tcpServiceIn(proxied), count(proxyChecked), goTo("proxy")),
	}, list...)
}

// proxy answers SYNs and takes cookies.
func (b builder) proxy() []rule {
	if !b.proxies() {
		return nil
	}
	return []rule{newRule(synproxy(b.posture.Handshake, false)...), newRule(synproxy(b.posture.Handshake, true)...)}
}

// proxyOpens counts the connections that synproxy opens to this host's listeners by way of lo.
func (b builder) proxyOpens(by statement, set string) []rule {
	if !b.proxies() {
		return nil
	}
	return []rule{newRule(by, opensTCP(), fromElsewhere(), destination.tcpServiceIn(set))}
}
