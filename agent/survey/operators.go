package survey

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// Sessions returns the addresses from which users are logged in, as systemd-logind notes them in
// /run/systemd/sessions (REMOTE_HOST); none where there is no logind.
func (h *Host) Sessions() []netip.Addr {
	files, _ := filepath.Glob(filepath.Join(h.run, "systemd/sessions/*"))
	var remote []netip.Addr
	for _, file := range files {
		// Beside each session's file lies a pipe, which would block.
		if info, err := os.Stat(file); err != nil || !info.Mode().IsRegular() {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			continue // the session ended meanwhile
		}
		for line := range strings.Lines(string(text)) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), "REMOTE_HOST="); ok {
				if addr, err := netip.ParseAddr(strings.Trim(value, `"`)); err == nil {
					remote = append(remote, addr.Unmap().WithZone(""))
				}
			}
		}
	}
	return remote
}
