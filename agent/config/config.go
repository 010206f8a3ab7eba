package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"ctguard/agent/notify"
	"ctguard/policy"
)

// DefaultPath is where the configuration is unless --config says otherwise.
const DefaultPath = "/etc/ctguard/ctguard.toml"

// Config is the agent's configuration, validated.
type Config struct {
	Path       string // the file it came from
	Absent     bool   // there was no such file: these are the defaults
	Socket     string // path of the control socket
	Group      string // group whose members may change things through the socket, besides root; empty: none
	StateDir   string
	Capacity   int            // entries this namespace may use; 0 means nf_conntrack_max
	Allow      []netip.Prefix // configured allowlist
	Ports      []uint16       // management ports: the peers of their live connections are allowlisted
	Services   []string       // safe traffic: selectors, or "auto" for what is found
	Except     []policy.Selector
	Proxied    []policy.Selector // TCP ports that synproxy may stand in front of; none means those that are found
	GrowMemory float64           // percent of the machine's memory that the table may grow to
	V4Bits     int               // prefix length that makes a source
	V6Bits     int
	Metrics    string            // address to serve Prometheus metrics and the page on; empty: none
	Details    bool              // the page also names sources, reasons and what was found of this host
	Notify     notify.Config     // whom to tell of what should wake somebody
	Namespaces []Namespace       // those that `ctguard run` guards, an agent each; none means its own
	Capacities map[Namespace]int // of those that have one of their own
	Namespace  Namespace         // the one that this configuration is for: see [Config.In]
	Policy     policy.Config
}

// rawConfig is the file as it is written. Pointers tell what the file says from what it leaves to
// the profile's default.
type rawConfig struct {
	Profile    policy.Profile     `toml:"profile"`
	Socket     string             `toml:"socket"`
	Group      string             `toml:"group"`
	StateDir   string             `toml:"state_dir"`
	Namespaces []string           `toml:"namespaces"`
	Capacities map[string]int     `toml:"capacities"`
	Lookahead  *duration          `toml:"lookahead"`
	Allow      []string           `toml:"allow"`
	Table      rawTable           `toml:"table"`
	Tick       rawTick            `toml:"tick"`
	Sources    rawSources         `toml:"sources"`
	Manage     rawManagement      `toml:"management"`
	Metrics    rawMetrics         `toml:"metrics"`
	Notify     rawNotify          `toml:"notify"`
	Steps      map[string]rawStep `toml:"steps"`
	Notrack    rawNotrack         `toml:"notrack"`
	Tighten    rawTighten         `toml:"tighten"`
	Evict      rawEvict           `toml:"evict"`
	Invalid    rawInvalid         `toml:"drop_invalid"`
	Grow       rawGrow            `toml:"grow"`
	Synproxy   rawSynproxy        `toml:"synproxy"`
	Admit      rawAdmit           `toml:"admit"`
}

type (
	rawTable struct {
		Capacity int `toml:"capacity"`
	}
	rawMetrics struct {
		Listen  string `toml:"listen"`
		Details bool   `toml:"page_details"`
	}
	rawNotify struct {
		Command []string `toml:"command"`
		Webhook string   `toml:"webhook"`
		Level   *int     `toml:"level"`
	}
	rawTick struct {
		Calm    *duration `toml:"calm"`
		Pressed *duration `toml:"pressed"`
	}
	rawSources struct {
		IPv4Prefix *int `toml:"ipv4_prefix"`
		IPv6Prefix *int `toml:"ipv6_prefix"`
	}
	rawGrow struct {
		Memory *float64 `toml:"memory"`
	}
	rawSynproxy struct {
		Ports []int `toml:"ports"`
	}
	rawAdmit struct {
		Share *float64 `toml:"share"`
	}
	rawManagement struct {
		Ports []int `toml:"ports"`
	}
	rawStep struct {
		Enabled *bool     `toml:"enabled"`
		Enter   *float64  `toml:"enter"`
		Leave   *float64  `toml:"leave"`
		Settle  *duration `toml:"settle"`
	}
	rawInvalid struct {
		CalmPerSecond *float64 `toml:"calm_per_second"`
	}
	rawNotrack struct {
		Services []string  `toml:"services"`
		Except   []string  `toml:"except"`
		Trial    *duration `toml:"trial"`
		Retry    *duration `toml:"retry"`
	}
	rawTighten struct {
		Floors map[string]duration `toml:"floors"`
	}
	rawEvict struct {
		Target       *float64           `toml:"target"`
		Floor        *int               `toml:"floor"`
		Weights      map[string]float64 `toml:"weights"`
		SpareAssured *bool              `toml:"spare_assured"`
		MaxLimited   *int               `toml:"max_limited"`
		LimitFor     *duration          `toml:"limit_for"`
		MaxLimitFor  *duration          `toml:"max_limit_for"`
		LimitRate    *int               `toml:"limit_rate"`
		BanUnreplied *bool              `toml:"ban_unreplied"`
		Reject       *bool              `toml:"reject"`
	}
)

// duration is a Go duration string.
type duration time.Duration

// UnmarshalText reads a duration such as "250ms" or "1h30m".
func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf(`%q is no duration: write a number with a unit, such as "250ms", "10s" or "1h30m"`, text)
	}
	*d = duration(v)
	return nil
}

// An Error is one fault of a configuration file.
type Error struct {
	File string
	Line int // 0 where the fault is not on one line
	Key  string
	Text string
}

// Error returns file, line, key and what is wrong, as compilers write it.
func (e *Error) Error() string {
	place := e.File
	if e.Line > 0 {
		place += fmt.Sprintf(":%d", e.Line)
	}
	if e.Key != "" {
		place += ": " + e.Key
	}
	return place + ": " + e.Text
}

// Load reads the configuration at path. A file that does not exist is an empty one when
// optional is set. The error joins every fault found, each a [*Error].
func Load(path string, optional bool) (Config, error) {
	text, err := os.ReadFile(path)
	if err != nil && (!optional || !errors.Is(err, fs.ErrNotExist)) {
		var perr *fs.PathError
		if errors.As(err, &perr) {
			err = perr.Err
		}
		return Config{}, &Error{File: path, Text: "cannot be read: " + err.Error()}
	}
	c, fault := Parse(path, text)
	c.Absent = err != nil
	return c, fault
}

// Parse reads a configuration; path is only for messages.
func Parse(path string, text []byte) (Config, error) {
	doc, err := read(path, text, reflect.TypeFor[rawConfig]())
	if err != nil {
		return Config{}, err
	}
	if len(doc.faults) > 0 {
		return Config{}, joined(doc.faults)
	}
	var raw rawConfig
	meta, err := toml.Decode(string(text), &raw)
	if err != nil {
		return Config{}, libraryError(path, err)
	}
	var faults []*Error
	fault := func(key, format string, args ...any) {
		faults = append(faults, &Error{path, doc.lines.of(key), key, fmt.Sprintf(format, args...)})
	}
	for _, key := range outermost(meta.Undecoded()) {
		fault(key.String(), "unknown key%s", nearest(key.String()))
	}
	c := raw.config(fault)
	c.Path = path
	for _, f := range c.Policy.Validate() {
		fault(f.Key, "%s", f.Text)
	}
	return c, joined(faults)
}

// joined makes one error of faults, in the order of their lines; nil of none.
func joined(faults []*Error) error {
	slices.SortStableFunc(faults, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Key, b.Key))
	})
	errs := make([]error, len(faults))
	for i, f := range faults {
		errs[i] = f
	}
	return errors.Join(errs...)
}

// outermost leaves out the keys inside tables that are unknown themselves.
func outermost(keys []toml.Key) []toml.Key {
	unknown := make(map[string]bool)
	for _, key := range keys {
		unknown[key.String()] = true
	}
	return slices.DeleteFunc(keys, func(key toml.Key) bool {
		for i := range len(key) - 1 {
			if unknown[key[:i+1].String()] {
				return true
			}
		}
		return false
	})
}

// config turns the file into a configuration, defaults filled in.
func (raw *rawConfig) config(fault func(key, format string, args ...any)) Config {
	profile := cmp.Or(raw.Profile, policy.Auto)
	c := Config{
		Socket:   cmp.Or(raw.Socket, "/run/ctguard/ctguard.sock"),
		Group:    raw.Group,
		StateDir: cmp.Or(raw.StateDir, "/var/lib/ctguard"),
		Capacity: raw.Table.Capacity,
		Metrics:  raw.Metrics.Listen,
		Details:  raw.Metrics.Details,
		Ports:    []uint16{22},
		V4Bits:   32, V6Bits: 64,
		GrowMemory: 3,
		Policy:     policy.Defaults(profile),
	}
	if c.Capacity < 0 {
		fault("table.capacity", "%d is below 0", c.Capacity)
	}
	bits := func(key string, to *int, from *int, most int) {
		if set(to, from); *to < 1 || *to > most {
			fault(key, "%d is not between 1 and %d", *to, most)
		}
	}
	bits("sources.ipv4_prefix", &c.V4Bits, raw.Sources.IPv4Prefix, 32)
	bits("sources.ipv6_prefix", &c.V6Bits, raw.Sources.IPv6Prefix, 128)
	if raw.Manage.Ports != nil {
		c.Ports = nil
	}
	c.Ports = append(c.Ports, ports("management.ports", raw.Manage.Ports, fault)...)
	c.Allow = prefixes("allow", raw.Allow, fault)
	if set(&c.GrowMemory, raw.Grow.Memory); !(c.GrowMemory > 0 && c.GrowMemory <= 50) {
		fault("grow.memory", "%v is not a percentage of the memory above 0 and up to 50", c.GrowMemory)
	}
	for _, port := range ports("synproxy.ports", raw.Synproxy.Ports, fault) {
		c.Proxied = append(c.Proxied, policy.Selector{Protocol: policy.TCP, Port: port})
	}
	raw.namespaces(&c, fault)
	raw.notices(&c, fault)
	raw.safeTraffic(&c, fault)
	raw.policy(&c.Policy, fault)
	return c
}

// notices writes what the file says of notices into a configuration.
func (raw *rawConfig) notices(c *Config, fault func(key, format string, args ...any)) {
	n := notify.Config{Command: raw.Notify.Command, Webhook: raw.Notify.Webhook, Level: 1}
	if set(&n.Level, raw.Notify.Level); n.Level < 1 || n.Level > len(policy.StepNames()) {
		fault("notify.level", "%d is not between 1 and %d", n.Level, len(policy.StepNames()))
	}
	if len(n.Command) > 0 && !filepath.IsAbs(n.Command[0]) {
		fault("notify.command", "%q is no path from the root: no program is searched for", n.Command[0])
	}
	if u, err := url.Parse(n.Webhook); n.Webhook != "" && (err != nil || u.Host == "" ||
		u.Scheme != "http" && u.Scheme != "https") {
		fault("notify.webhook", "is no URL of http or https") // which may have a secret in it
	}
	c.Notify = n
}

// safeTraffic writes what the file says of safe traffic into a configuration.
func (raw *rawConfig) safeTraffic(c *Config, fault func(key, format string, args ...any)) {
	c.Services = raw.Notrack.Services
	if c.Services == nil {
		c.Services = []string{"auto"}
	}
	for _, text := range c.Services {
		if _, err := policy.ParseSelector(text); err != nil && text != "auto" {
			fault("notrack.services", `%v; or "auto"`, err)
		}
	}
	for _, text := range raw.Notrack.Except {
		s, err := policy.ParseSelector(text)
		if err != nil {
			fault("notrack.except", "%v", err)
		}
		c.Except = append(c.Except, s)
	}
}

// policy writes what the file says into a policy configuration.
func (raw *rawConfig) policy(p *policy.Config, fault func(key, format string, args ...any)) {
	set(&p.Lookahead, (*time.Duration)(raw.Lookahead))
	set(&p.Calm, (*time.Duration)(raw.Tick.Calm))
	set(&p.Pressed, (*time.Duration)(raw.Tick.Pressed))
	set(&p.OrdinaryInvalid, raw.Invalid.CalmPerSecond)
	set(&p.Trial, (*time.Duration)(raw.Notrack.Trial))
	set(&p.RetryTrial, (*time.Duration)(raw.Notrack.Retry))
	set(&p.ClassShare, raw.Admit.Share)
	e := raw.Evict
	set(&p.Target, e.Target)
	set(&p.Floor, e.Floor)
	set(&p.SpareAssured, e.SpareAssured)
	set(&p.MaxLimited, e.MaxLimited)
	set(&p.LimitFor, (*time.Duration)(e.LimitFor))
	set(&p.MaxLimitFor, (*time.Duration)(e.MaxLimitFor))
	set(&p.LimitRate, e.LimitRate)
	set(&p.BanUnreplied, e.BanUnreplied)
	set(&p.Reject, e.Reject)
	for _, text := range slices.Sorted(maps.Keys(e.Weights)) {
		for _, prefix := range prefixes("evict.weights", []string{text}, fault) {
			p.Weights = append(p.Weights, policy.Weight{Prefix: prefix, Weight: e.Weights[text]})
		}
	}
	for name, floor := range raw.Tighten.Floors {
		if _, known := p.Floors[name]; !known {
			fault("tighten.floors."+name, "is no timeout that tighten knows; it knows %s",
				strings.Join(slices.Sorted(maps.Keys(p.Floors)), ", "))
			continue
		}
		if p.Floors[name] = int(time.Duration(floor) / time.Second); p.Floors[name] < 1 {
			fault("tighten.floors."+name, "%s is below 1s", time.Duration(floor))
		}
	}
	raw.steps(p, fault)
}

// steps writes what the file says of the ladder into a policy configuration.
func (raw *rawConfig) steps(p *policy.Config, fault func(key, format string, args ...any)) {
	for name := range raw.Steps {
		if !slices.Contains(policy.StepNames(), policy.StepName(name)) {
			fault("steps."+name, "unknown step; the steps are %s", joinNames(policy.StepNames()))
		}
	}
	ladder := p.Steps[:0]
	for _, step := range p.Steps {
		r := raw.Steps[string(step.Name)]
		set(&step.Enter, r.Enter)
		set(&step.Leave, r.Leave)
		set(&step.Settle, (*time.Duration)(r.Settle))
		if r.Enabled == nil || *r.Enabled {
			ladder = append(ladder, step)
		}
	}
	raw.makeWay(ladder)
	p.Steps = ladder
}

// makeWay moves the marks that the file leaves to their defaults below or above those that it sets, so
// that the ladder climbs: who moves one step need not know the others.
func (raw *rawConfig) makeWay(ladder []policy.Step) {
	above := 100.0
	for i := len(ladder) - 1; i >= 0; i-- {
		step, r := &ladder[i], raw.Steps[string(ladder[i].Name)]
		if r.Enter == nil {
			step.Enter = min(step.Enter, above)
		}
		if isPercent(step.Enter) {
			above = step.Enter
		}
	}
	below := 0.0
	for i := range ladder {
		step, r := &ladder[i], raw.Steps[string(ladder[i].Name)]
		if r.Enter == nil {
			step.Enter = max(step.Enter, below)
			if r.Leave == nil && step.Leave >= step.Enter {
				step.Leave = step.Enter / 2
			}
		}
		if isPercent(step.Enter) {
			below = step.Enter
		}
	}
}

// isPercent reports whether x can be a mark; it is false of what is no number.
func isPercent(x float64) bool { return x > 0 && x <= 100 }

// joinNames lists the names of steps for a message.
func joinNames(names []policy.StepName) string {
	text := make([]string, len(names))
	for i, n := range names {
		text[i] = string(n)
	}
	return strings.Join(text, ", ")
}

// set writes what the file says, if it says anything.
func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// ports reads port numbers.
func ports(key string, numbers []int, fault func(key, format string, args ...any)) []uint16 {
	list := make([]uint16, 0, len(numbers))
	for _, n := range numbers {
		if n < 1 || n > 65535 {
			fault(key, "%d is no port", n)
		}
		list = append(list, uint16(n))
	}
	return list
}

// prefixes reads prefixes and single addresses.
func prefixes(key string, texts []string, fault func(key, format string, args ...any)) []netip.Prefix {
	list := make([]netip.Prefix, 0, len(texts))
	for _, text := range texts {
		p, err := ParsePrefix(text)
		if err != nil {
			fault(key, "%v", err)
			continue
		}
		list = append(list, p)
	}
	return list
}

// ParsePrefix reads a prefix, or an address as the prefix of it alone.
func ParsePrefix(text string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
		return netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf(`%q is no address or prefix: write "198.51.100.7" or "2001:db8::/32"`, text)
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is IPv4 written as IPv6: write the IPv4 prefix", text)
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%q has bits beyond its length: write %q", text, p.Masked())
	}
	return p, nil
}
