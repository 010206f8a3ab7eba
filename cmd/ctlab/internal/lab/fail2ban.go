package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// fail2ban is the program of that name, as one would set it up against floods: its log is what
// conntrack(8) tells of new connections, and who opens more than the jail's number in the jail's time
// is dropped by nftables.
type fail2ban struct {
	server, events *exec.Cmd
	exited         chan struct{}
}

// fail2banPrograms are what the guard needs, all in Debian packages of the same names.
var fail2banPrograms = []string{"fail2ban-server", "fail2ban-client", "conntrack"}

// fail2banFiles are its configuration, with the run's directory to be filled in. Twenty new connections a
// second over five seconds are more than any honest client of the lab opens. The chain is ahead of input and
// forward, so that what it drops makes no entry.
var fail2banFiles = map[string]string{
	"fail2ban.conf": `[Definition]
loglevel = INFO
logtarget = %[1]s/fail2ban.log
socket = %[1]s/fail2ban.sock
pidfile = %[1]s/fail2ban.pid
dbfile = None
allowipv6 = auto
`,
	"filter.d/newflows.conf": `[Definition]
failregex = \[NEW\].*? src=<HOST> dst=
datepattern = {^LN-BEG}EPOCH
`,
	"jail.conf": `[newflows]
enabled = true
filter = newflows
logpath = %[1]s/newflows.log
backend = polling
usedns = no
findtime = 5
maxretry = 100
bantime = 60
action = nftables[type=custom, rule_match-custom="meta l4proto { tcp, udp }", protocol=tcp, ` +
		"chain_hook=prerouting, blocktype=drop]\n",
}

const (
	fail2banSocket   = "fail2ban.sock"
	fail2banPatience = 15 * time.Second
	fail2banActions  = "/etc/fail2ban/action.d"
)

func (g *fail2ban) start(ctx context.Context, r *run) error {
	for _, program := range fail2banPrograms {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w: install fail2ban and conntrack", err)
		}
	}
	if err := writeFail2banFiles(r.dir); err != nil {
		return err
	}
	if err := g.tellNewFlows(r); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(r.dir, "fail2ban.out"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the child has its own
	g.server = exec.Command("fail2ban-server", "-c", r.dir, "-f", "start")
	g.server.Stdout, g.server.Stderr = log, log
	if err := r.site.protected.Start(g.server); err != nil {
		return fmt.Errorf("start fail2ban: %w", err)
	}
	g.exited = make(chan struct{})
	go func() {
		_ = g.server.Wait() // an early end shows in await
		close(g.exited)
	}()
	return g.await(ctx, r)
}

// writeFail2banFiles makes a configuration directory beside the run's other files.
func writeFail2banFiles(dir string) error {
	for name, text := range fail2banFiles {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, fmt.Appendf(nil, text, dir), 0o600); err != nil {
			return err
		}
	}
	return os.Symlink(fail2banActions, filepath.Join(dir, "action.d"))
}

// tellNewFlows lets conntrack write the log that fail2ban reads.
func (g *fail2ban) tellNewFlows(r *run) error {
	log, err := os.Create(filepath.Join(r.dir, "newflows.log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the child has its own
	const buffer = "8388608"           // bytes, so that a burst is not lost at once
	g.events = exec.Command("conntrack", "-E", "-e", "NEW", "-o", "timestamp", "-b", buffer)
	g.events.Stdout = log
	if err := r.site.protected.Start(g.events); err != nil {
		return fmt.Errorf("start conntrack: %w", err)
	}
	return nil
}

// await asks fail2ban until its jail is at work.
func (g *fail2ban) await(ctx context.Context, r *run) error {
	ctx, cancel := context.WithTimeout(ctx, fail2banPatience)
	defer cancel()
	for {
		out, err := exec.CommandContext(ctx, "fail2ban-client", "-s", filepath.Join(r.dir, fail2banSocket), "status",
			"newflows").CombinedOutput()
		if err == nil {
			return nil
		}
		select {
		case <-g.exited:
			return errors.Join(errors.New("fail2ban ended at once"), g.stop(r))
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("fail2ban does not answer: %w: %s", err, bytes.TrimSpace(out)), g.stop(r))
		case <-time.After(pollEvery):
		}
	}
}

func (*fail2ban) level() int { return -1 }

// cost counts both programs, and the nft commands of each ban.
func (g *fail2ban) cost() Cost {
	c, events := processCost(g.server.Process.Pid), processCost(g.events.Process.Pid)
	c.CPUSeconds += events.CPUSeconds
	c.PeakRSSKiB += events.PeakRSSKiB
	return c
}

// stop ends both programs; fail2ban takes its table back.
func (g *fail2ban) stop(*run) error {
	_ = g.events.Process.Kill()
	_ = g.events.Wait() // it was killed, or gave up on a full buffer
	_ = g.server.Process.Signal(syscall.SIGTERM)
	select {
	case <-g.exited:
		return nil
	case <-time.After(stopPatience):
		_ = g.server.Process.Kill()
		<-g.exited
		return fmt.Errorf("fail2ban did not stop within %v of SIGTERM", stopPatience)
	}
}
