package lab

import (
	"ctguard/cmd/ctlab/internal/flood"
	"ctguard/cmd/ctlab/internal/measure"
)

// Result is what came of a scenario. Its JSON field names are stable. A figure
// that could not be measured is null.
type Result struct {
	Scenario Scenario `json:"scenario"`
	Kernel   string   `json:"kernel"`
	CPUs     int      `json:"cpus"`

	Flood   Flood   `json:"flood"`
	Fill    Fill    `json:"fill"`
	HTTP    Service `json:"http"`
	UDP     Service `json:"udp"`
	Lasting Lasting `json:"lasting"`
	Parties []Party `json:"parties,omitempty"`
	Guard   Cost    `json:"guard"`

	// OrdinaryKept is the share of the ordinary users' entries that is still in the table at the
	// end. Where a guard stops tracking their service it frees them too, and they lose nothing.
	OrdinaryKept *float64 `json:"ordinary_kept_percent"`

	// SecondsToServed is from the onset until new HTTP connections were ≥ 99 %
	// served and stayed so during the attack; 0: they always were.
	SecondsToServed *float64 `json:"seconds_to_served"`
	// SecondsToBaseline is from the end of the attack until fill was back near its calm value
	// with the guard at level 0.
	SecondsToBaseline *float64 `json:"seconds_to_baseline"`
	// AtWork lists differences of ruleset and settings between before the guard's start and the
	// end of the attack: what it had changed by then.
	AtWork []string `json:"at_work"`
	// LeftBehind lists differences of ruleset and settings between before the guard's
	// start and after its stop; null for a guard that is settings and has no stop.
	LeftBehind []string `json:"left_behind"`

	// Leaked is how many packets left the gateway with an address of its inside, whoever sent
	// them, from before the guard's start until after its stop; null on a server. LeakExamples
	// are the first of them.
	Leaked       *uint64  `json:"leaked_packets"`
	LeakExamples []string `json:"leak_examples,omitempty"`

	MaxLevel int              `json:"max_level"`
	Samples  []measure.Sample `json:"samples"`
	Failures map[string]int   `json:"failures,omitempty"`
	// Events are the guard's own, as its status gives them.
	Events []any `json:"events,omitempty"`
}

// Flood is the attack as it was asked for and as it was.
type Flood struct {
	flood.Result
	AskedRate    int     `json:"asked_rate"`
	AchievedRate float64 `json:"achieved_rate"`
}

// Fill is how full the table was, in percent of its capacity.
type Fill struct {
	Calm         float64 `json:"calm_percent"`
	Peak         float64 `json:"peak_percent"`
	AttackEnd    float64 `json:"attack_end_percent"`
	End          float64 `json:"end_percent"`
	SecondsAbove float64 `json:"seconds_above_95"`
	Drops        uint64  `json:"kernel_drops"`
	EarlyDrops   uint64  `json:"early_drops"`
}

// Service is what clients got of one service. During begins one second after the
// onset; After begins with the end of the attack.
type Service struct {
	Calm          *float64         `json:"calm_percent"`
	Onset         *float64         `json:"onset_percent"`
	During        *float64         `json:"during_percent"`
	After         *float64         `json:"after_percent"`
	P50           *float64         `json:"p50_ms"`
	P99           *float64         `json:"p99_ms"`
	LongestOutage float64          `json:"longest_outage_seconds"`
	Buckets       []measure.Bucket `json:"buckets"`
}

// Lasting is what became of connections that stood before the attack.
type Lasting struct {
	Opened int `json:"opened"`
	Lost   int `json:"lost"`
	// Resets is how many of the clients' established connections were ended by a reset,
	// requests that were under way among them.
	Resets       int  `json:"resets"`
	SessionAlive bool `json:"session_alive"`
}

// Party is what others than the host's clients got meanwhile, and what they must get.
type Party struct {
	Name    string  `json:"name"`
	Wanted  float64 `json:"wanted_percent"`
	HTTP    Service `json:"http"`
	UDP     Service `json:"udp"`
	Lasting Lasting `json:"lasting"`

	Failures map[string]int `json:"failures,omitempty"`
}

// Cost is what the guard took.
type Cost struct {
	CPUSeconds  float64 `json:"cpu_seconds"`
	CPUPercent  float64 `json:"cpu_percent_of_core"`
	PeakRSSKiB  int     `json:"peak_rss_kib"`
	StopSeconds float64 `json:"stop_seconds"`
}
