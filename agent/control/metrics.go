package control

import (
	"net/http"
	"runtime"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ctguard/policy"
)

// metrics is what Prometheus sees. Labels are bounded: steps and kinds of event, never addresses.
type metrics struct {
	registry                                                           *prometheus.Registry
	level, fill, pressure, count, capacity, rate, limited, tick, rules prometheus.Gauge
	degraded                                                           prometheus.Gauge
	build, profile, mode                                               *info
	skipped                                                            *prometheus.GaugeVec
	notices                                                            *prometheus.CounterVec
	drops, evicted                                                     *counter
	engaged                                                            *prometheus.GaugeVec
	work                                                               map[policy.StepName]*counter
	events                                                             *prometheus.CounterVec
}

// counter follows a cumulative count that somebody else keeps.
type counter struct {
	prometheus.Counter
	last uint64
}

// to moves the counter to a value; one that jumped back starts again.
func (c *counter) to(value uint64) {
	if value > c.last {
		c.Add(float64(value - c.last))
	}
	c.last = value
}

// info is a metric that is always 1 and says something by its labels.
type info struct {
	*prometheus.GaugeVec
	last string
}

// says sets the labels; those that it had before are gone.
func (i *info) says(values ...string) {
	if now := strings.Join(values, "\n"); now != i.last {
		i.Reset()
		i.WithLabelValues(values...).Set(1)
		i.last = now
	}
}

// newMetrics registers everything.
func newMetrics() *metrics {
	m := &metrics{registry: prometheus.NewRegistry(), work: make(map[policy.StepName]*counter)}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "ctguard_" + name, Help: help})
		m.registry.MustRegister(g)
		return g
	}
	count := func(name, help string, labels prometheus.Labels) *counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "ctguard_" + name, Help: help, ConstLabels: labels})
		m.registry.MustRegister(c)
		return &counter{Counter: c}
	}
	m.level = gauge("level", "How many steps of the ladder are engaged.")
	m.fill = gauge("fill_ratio", "Entries in the conntrack table as a part of its capacity.")
	m.pressure = gauge("pressure_ratio", "Fill projected ahead, as a part of the capacity.")
	m.count = gauge("entries", "Entries in the conntrack table.")
	m.capacity = gauge("capacity_entries", "Entries that this namespace may use.")
	m.rate = gauge("growth_entries_per_second", "Net new entries per second.")
	m.limited = gauge("limited_sources", "Sources that are limited.")
	m.tick = gauge("tick_seconds", "How long the last turn of the control loop took.")
	m.rules = gauge("rules_seconds_max", "The longest so far from an observation to its rules in the kernel.")
	m.drops = count("kernel_drops_total", "New flows that the kernel refused (drop and insert_failed).", nil)
	m.evicted = count("evicted_entries_total", "Entries that ctguard deleted.", nil)
	for _, name := range policy.StepNames() {
		m.work[name] = count("step_work_total", "Packets or entries that a step handled.",
			prometheus.Labels{"step": string(name)})
	}
	m.engaged = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "ctguard_step_engaged",
		Help: "Whether a step is engaged."}, []string{"step"})
	m.events = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ctguard_events_total", Help: "Events by kind."},
		[]string{"event"})
	m.skipped = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "ctguard_step_skipped",
		Help: "Whether a step can do nothing on this host."}, []string{"step"})
	m.notices = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ctguard_notices_total",
		Help: "Events for the operator by what became of them."}, []string{"result"})
	for _, result := range []string{"sent", "failed", "left_out"} {
		m.notices.WithLabelValues(result)
	}
	m.degraded = gauge("degraded_parts", "Parts of ctguard that do not work now.")
	m.build = m.info("build_info", "The version that runs.", "version", "goversion")
	m.profile = m.info("profile_info", "What kind of host this is.", "profile")
	m.mode = m.info("mode_info", "Who decides: auto, hold or dry-run.", "mode")
	m.registry.MustRegister(m.engaged, m.skipped, m.events, m.notices, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// info registers a metric that says something by its labels.
func (m *metrics) info(name, help string, labels ...string) *info {
	vec := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "ctguard_" + name, Help: help}, labels)
	m.registry.MustRegister(vec)
	return &info{GaugeVec: vec}
}

// update takes the state after a tick.
func (m *metrics) update(s *Status) {
	m.level.Set(float64(s.Level))
	m.fill.Set(s.Fill / 100)
	m.pressure.Set(s.Pressure / 100)
	m.count.Set(float64(s.Count))
	m.capacity.Set(float64(s.Capacity))
	m.rate.Set(s.Rate)
	m.limited.Set(float64(len(s.Limited)))
	m.tick.Set(s.TickSeconds)
	m.rules.Set(s.RulesSeconds)
	m.degraded.Set(float64(len(s.Degraded)))
	m.build.says(s.Version, runtime.Version())
	m.profile.says(string(s.Profile))
	m.mode.says(s.Mode)
	m.drops.to(s.KernelDrops)
	m.evicted.to(s.Evicted)
	for _, step := range s.Steps {
		m.work[step.Name].to(step.Work)
		m.engaged.WithLabelValues(string(step.Name)).Set(one(step.Engaged))
		m.skipped.WithLabelValues(string(step.Name)).Set(one(step.Skipped != ""))
	}
}

// one is 1 for what is true.
func one(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// handler serves the metrics.
func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}
