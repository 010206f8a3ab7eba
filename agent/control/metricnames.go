package control

import (
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// Metric describes a metric, for the documents.
type Metric struct {
	Name, Help string
	Labels     []string
}

// described is what the library says of a metric; it has no other way to ask.
var described = regexp.MustCompile(`^Desc\{fqName: "(ctguard_\w+)", help: "(.*?)", constLabels: \{(.*?)\}, ` +
	`variableLabels: \{(.*?)\}\}$`)

// Metrics lists every metric of ctguard's own, by name.
func Metrics() []Metric {
	descs := make(chan *prometheus.Desc)
	go func() {
		newMetrics().registry.Describe(descs)
		close(descs)
	}()
	all := make(map[string]Metric)
	for d := range descs {
		m := described.FindStringSubmatch(d.String())
		if m == nil {
			continue // Go's and the process's
		}
		var labels []string
		for label := range strings.SplitSeq(m[3]+","+m[4], ",") {
			if name, _, _ := strings.Cut(label, "="); name != "" {
				labels = append(labels, name)
			}
		}
		all[m[1]] = Metric{m[1], m[2], labels}
	}
	var list []Metric
	for _, m := range all {
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b Metric) int { return strings.Compare(a.Name, b.Name) })
	return list
}
