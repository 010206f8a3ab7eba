package nft

import "os"

// queues lists the programs in this namespace that packets wait for, one a line.
const queues = "/proc/thread-self/net/netfilter/nfnetlink_queue"

// holdHooks keeps the base chains that there are where packets wait for a program (NFQUEUE: an intrusion prevention
// system, say). When a hook goes, the kernel drops all that are waiting, of every queue in the namespace
// (nfqnl_nf_hook_drop in net/netfilter/nfnetlink_queue.c); nobody else loses a packet. A file that can't be read may
// have queues in it.
func (t *Table) holdHooks() {
	text, err := os.ReadFile(queues)
	if os.IsNotExist(err) || err == nil && len(text) == 0 {
		t.keep.hooks = nil
		return
	}
	t.keep.hooks = map[string]bool{}
	for _, c := range t.have.chains {
		t.keep.hooks[c.name] = c.hook != nil
	}
}
