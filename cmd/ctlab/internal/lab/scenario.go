package lab

import (
	"errors"
	"fmt"
	"time"

	"ctguard/cmd/ctlab/internal/flood"
	"ctguard/cmd/ctlab/internal/guardian"
	"ctguard/cmd/ctlab/internal/measure"
	"ctguard/cmd/ctlab/internal/role"
	"ctguard/cmd/ctlab/internal/service"
	"ctguard/cmd/ctlab/internal/workload"
)

// Scenario says what to run. The zero value of a field means its default.
type Scenario struct {
	Topology string `json:"topology"`
	Attack   string `json:"attack"`
	Guard    string `json:"guard"`

	// Calm, AttackFor and After are the three phases.
	Calm      time.Duration `json:"calm"`
	AttackFor time.Duration `json:"attack_for"`
	After     time.Duration `json:"after"`
	// Settle is how much longer than After to wait for the baseline to return.
	Settle time.Duration `json:"settle"`

	// StartAt is when the guard is started, from the beginning of the attack, as by an operator who comes to a full
	// table; before the calm where it is 0.
	StartAt time.Duration `json:"start_at,omitempty"`
	// RestartAt is when the guard is restarted, from the beginning of the attack; never where it is 0.
	RestartAt time.Duration `json:"restart_at,omitempty"`

	// Capacity is the table's size, Background the entries that ordinary users
	// hold of it, BackgroundSources how many users they are; a negative
	// Background means none.
	Capacity          int `json:"capacity"`
	Background        int `json:"background"`
	BackgroundSources int `json:"background_sources"`

	// Rate and Sources override the attack's own, where above zero.
	Rate    int `json:"rate,omitempty"`
	Sources int `json:"sources,omitempty"`

	HTTPRate int `json:"http_rate"`
	UDPRate  int `json:"udp_rate"`
	Lasting  int `json:"lasting"`

	// CTGuard is the path of the ctguard binary; ConfigExtra is TOML to merge into
	// its configuration; ExtraArgs are added to its command line.
	CTGuard     string   `json:"-"`
	ConfigExtra string   `json:"config_extra,omitempty"`
	ExtraArgs   []string `json:"extra_args,omitempty"`

	// Log, if set, is told what happens; OnSample gets each sample as it is taken.
	Log      func(format string, args ...any) `json:"-"`
	OnSample func(measure.Sample)             `json:"-"`
}

// maxPhase bounds each phase of a run.
const maxPhase = 10 * time.Minute

// Roles are the parts that a program which calls Run must offer to role.Hook.
func Roles() map[string]role.Func {
	return map[string]role.Func{
		flood.Role:    flood.Run,
		guardian.Role: guardian.Run,
		service.Role:  service.Run,
		workload.Role: workload.Run,
	}
}

func (s Scenario) withDefaults() Scenario {
	def(&s.Topology, "server")
	def(&s.Attack, "handshake")
	def(&s.Guard, "none")
	def(&s.Calm, 5*time.Second)
	if a, ok := attackNamed(s.Attack); ok {
		def(&s.AttackFor, a.lasts)
	}
	def(&s.AttackFor, 8*time.Second)
	def(&s.After, 3*time.Second)
	def(&s.Capacity, 65536)
	def(&s.Background, s.Capacity/2-s.Capacity/85) // 32 000 of 65 536
	def(&s.BackgroundSources, 2000)
	if s.Topology == "shared-address" || s.Topology == "load-balancers" {
		def(&s.HTTPRate, 60)
		def(&s.Lasting, 300)
	}
	if s.Topology == "listener" { // of whom much ends, so that much is kept
		def(&s.HTTPRate, 600)
		def(&s.UDPRate, 600)
	}
	def(&s.HTTPRate, 200)
	def(&s.UDPRate, 50)
	def(&s.Lasting, 40)
	s.Background = max(0, s.Background)
	if s.Log == nil {
		s.Log = func(string, ...any) {}
	}
	if s.OnSample == nil {
		s.OnSample = func(measure.Sample) {}
	}
	return s
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func (s Scenario) check() error {
	a, ok := attackNamed(s.Attack)
	if !ok {
		return fmt.Errorf("unknown attack %q; ctlab list shows them", s.Attack)
	}
	if _, ok := topologies[s.Topology]; !ok {
		return fmt.Errorf("unknown topology %q; ctlab list shows them", s.Topology)
	}
	if _, ok := guardNamed(s.Guard); !ok {
		return fmt.Errorf("unknown guard %q; ctlab list shows them", s.Guard)
	}
	if !a.runsOn(s.Topology) {
		return fmt.Errorf("attack %s does not run on topology %s", s.Attack, s.Topology)
	}
	if g, _ := guardNamed(s.Guard); s.RestartAt != 0 && !g.agent {
		return fmt.Errorf("guard %s can't be restarted", s.Guard)
	}
	for _, at := range []time.Duration{s.StartAt, s.RestartAt} {
		if at < 0 || at > 0 && at >= s.AttackFor {
			return fmt.Errorf("a start at %v is not within the attack of %v", at, s.AttackFor)
		}
	}
	if s.RestartAt > 0 && s.RestartAt <= s.StartAt {
		return fmt.Errorf("a restart at %v is not after the start at %v", s.RestartAt, s.StartAt)
	}
	for _, d := range []time.Duration{s.Calm, s.AttackFor, s.After, s.Settle} {
		if d < 0 || d > maxPhase {
			return fmt.Errorf("a phase of %v is not between 0 and %v", d, maxPhase)
		}
	}
	if s.Capacity < 1024 || s.Background >= s.Capacity {
		return errors.New("capacity must be at least 1024 and more than the background")
	}
	return nil
}
