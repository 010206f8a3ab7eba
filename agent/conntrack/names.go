package conntrack

import "golang.org/x/sys/unix"

// Message types of the conntrack subsystem: enum cntl_msg_types in
// include/uapi/linux/netfilter/nfnetlink_conntrack.h, behind NFNL_SUBSYS_CTNETLINK in the high byte.
const (
	subsystem      = 1 << 8
	msgNew         = subsystem     // IPCTNL_MSG_CT_NEW: an entry in a dump, create or update in a request
	msgGet         = subsystem | 1 // IPCTNL_MSG_CT_GET
	msgDelete      = subsystem | 2 // IPCTNL_MSG_CT_DELETE
	msgGetStatsCPU = subsystem | 4 // IPCTNL_MSG_CT_GET_STATS_CPU
)

// Attributes of an entry: enum ctattr_type in the same header.
const (
	attrTupleOrig  = 1  // CTA_TUPLE_ORIG
	attrTupleReply = 2  // CTA_TUPLE_REPLY
	attrStatus     = 3  // CTA_STATUS
	attrProtoInfo  = 4  // CTA_PROTOINFO
	attrHelp       = 5  // CTA_HELP
	attrTimeout    = 7  // CTA_TIMEOUT, seconds
	attrNATDst     = 13 // CTA_NAT_DST
	attrMark       = 8  // CTA_MARK
	attrID         = 12 // CTA_ID
	attrZone       = 18 // CTA_ZONE
	attrSynproxy   = 24 // CTA_SYNPROXY
	attrFilter     = 25 // CTA_FILTER
	attrStatusMask = 26 // CTA_STATUS_MASK
)

// Attributes nested in the above: enums ctattr_tuple, ctattr_ip, ctattr_l4proto, ctattr_protoinfo,
// ctattr_protoinfo_tcp, ctattr_synproxy and ctattr_filter in the same header.
const (
	synproxyISN = 1 // CTA_SYNPROXY_ISN

	tupleIP    = 1 // CTA_TUPLE_IP
	tupleProto = 2 // CTA_TUPLE_PROTO
	tupleZone  = 3 // CTA_TUPLE_ZONE

	ipV4Src = 1 // CTA_IP_V4_SRC
	ipV4Dst = 2 // CTA_IP_V4_DST
	ipV6Src = 3 // CTA_IP_V6_SRC
	ipV6Dst = 4 // CTA_IP_V6_DST

	protoNum        = 1 // CTA_PROTO_NUM
	protoSrcPort    = 2 // CTA_PROTO_SRC_PORT
	protoDstPort    = 3 // CTA_PROTO_DST_PORT
	protoICMPID     = 4 // CTA_PROTO_ICMP_ID
	protoICMPType   = 5 // CTA_PROTO_ICMP_TYPE
	protoICMPCode   = 6 // CTA_PROTO_ICMP_CODE
	protoICMPv6ID   = 7 // CTA_PROTO_ICMPV6_ID
	protoICMPv6Type = 8 // CTA_PROTO_ICMPV6_TYPE
	protoICMPv6Code = 9 // CTA_PROTO_ICMPV6_CODE

	protoInfoTCP       = 1 // CTA_PROTOINFO_TCP
	protoInfoDCCP      = 2 // CTA_PROTOINFO_DCCP, gone from the kernel with its tracker
	protoInfoSCTP      = 3 // CTA_PROTOINFO_SCTP
	protoInfoState     = 1 // CTA_PROTOINFO_TCP_STATE, _DCCP_STATE and _SCTP_STATE alike
	protoInfoScaleOrig = 2 // CTA_PROTOINFO_TCP_WSCALE_ORIGINAL
	protoInfoScaleRepl = 3 // CTA_PROTOINFO_TCP_WSCALE_REPLY
	protoInfoFlagsOrig = 4 // CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, struct nf_ct_tcp_flags
	protoInfoFlagsRepl = 5 // CTA_PROTOINFO_TCP_FLAGS_REPLY

	filterOrigFlags  = 1      // CTA_FILTER_ORIG_FLAGS, host byte order
	filterReplyFlags = 2      // CTA_FILTER_REPLY_FLAGS
	filterSource     = 1 << 0 // CTA_FILTER_FLAG(CTA_IP_SRC) in net/netfilter/nf_conntrack_netlink.c
)

// Attributes of the per-CPU statistics: enum ctattr_stats_cpu in the same header.
const (
	statsInvalid      = 4  // CTA_STATS_INVALID
	statsInsertFailed = 9  // CTA_STATS_INSERT_FAILED
	statsDrop         = 10 // CTA_STATS_DROP
)

// Bits of CTA_STATUS: enum ip_conntrack_status in
// include/uapi/linux/netfilter/nf_conntrack_common.h.
const (
	statusExpected     = 1 << 0 // a helper announced it
	statusSeenReply    = 1 << 1
	statusAssured      = 1 << 2
	statusConfirmed    = 1 << 3 // in the table: the kernel insists on it when it makes an entry
	statusSrcNAT       = 1 << 4
	statusDstNAT       = 1 << 5
	statusFixedTimeout = 1 << 10
	statusOffload      = 1 << 14 // a flow table forwards its packets, which conntrack does not see
	statusHWOffload    = 1 << 15
)

// States of a TCP entry: enum tcp_conntrack in include/uapi/linux/netfilter/nf_conntrack_tcp.h.
const (
	tcpSynSent     = 1
	tcpSynRecv     = 2
	tcpEstablished = 3
	tcpFinWait     = 4
	tcpCloseWait   = 5
	tcpLastAck     = 6
	tcpTimeWait    = 7
	tcpClose       = 8
	tcpSynSent2    = 9

	tcpWindowScale    = 0x01 // IP_CT_TCP_FLAG_WINDOW_SCALE in the same header
	tcpClosesFirst    = 0x04 // IP_CT_TCP_FLAG_CLOSE_INIT
	tcpBeLiberal      = 0x08 // IP_CT_TCP_FLAG_BE_LIBERAL: packets outside the window are valid
	tcpUnacknowledged = 0x10 // IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED
)

// IP protocol numbers, as short as the code that is full of them needs.
const (
	protoICMP    = unix.IPPROTO_ICMP
	protoTCP     = unix.IPPROTO_TCP
	protoUDP     = unix.IPPROTO_UDP
	protoDCCP    = unix.IPPROTO_DCCP
	protoGRE     = unix.IPPROTO_GRE
	protoICMPv6  = unix.IPPROTO_ICMPV6
	protoSCTP    = unix.IPPROTO_SCTP
	protoUDPLite = unix.IPPROTO_UDPLITE
)

// Types of an echo request: RFC 792 and RFC 4443.
const (
	echoRequest   = 8
	echoRequestV6 = 128
)

// Inside of CTA_NAT_DST: enum ctattr_nat, and enum ctattr_protonat inside of CTA_NAT_PROTO.
const (
	natV4Least = 1
	natV4Most  = 2
	natProto   = 3
	natV6Least = 4
	natV6Most  = 5

	natPortLeast = 1
	natPortMost  = 2
)
