package lab

import (
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// destroyed is the multicast group of ended entries, NFNLGRP_CONNTRACK_DESTROY, as a bit.
const destroyed = 1 << 2

// shortTimeouts let entries end within a run.
var shortTimeouts = map[string]string{
	"net.netfilter.nf_conntrack_tcp_timeout_time_wait": "1",
	"net.netfilter.nf_conntrack_udp_timeout":           "1",
	"net.netfilter.nf_conntrack_udp_timeout_stream":    "1",
}

// buildListener makes the server again, with a program that wants to be told of each entry that ends, reliably, and
// that is stuck: the kernel keeps ended entries until it has told it, counts them, and lists them no more.
func buildListener(s *site) error {
	if err := buildServer(s); err != nil {
		return err
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: s.protected.FD(), Groups: destroyed})
	if err != nil {
		return fmt.Errorf("listen to events: %w", err)
	}
	s.listener = conn
	if err := errors.Join(conn.SetOption(netlink.BroadcastError, true), conn.SetReadBuffer(4096)); err != nil {
		return fmt.Errorf("listen reliably: %w", err)
	}
	return s.protected.Sysctl(shortTimeouts)
}
