package control

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ctguard/policy"
)

// metrics is what Prometheus sees. Labels are bounded: steps and kinds of event, never addresses.
type metrics struct {
	registry                                                           *prometheus.Registry
	level, fill, pressure, count, capacity, rate, limited, tick, rules prometheus.Gauge
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
	m.registry.MustRegister(m.engaged, m.events)
	return m
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
	m.drops.to(s.KernelDrops)
	m.evicted.to(s.Evicted)
	for _, step := range s.Steps {
		m.work[step.Name].to(step.Work)
		engaged := 0.0
		if step.Engaged {
			engaged = 1
		}
		m.engaged.WithLabelValues(string(step.Name)).Set(engaged)
	}
}

// handler serves the metrics.
func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}
