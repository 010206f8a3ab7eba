package main

import (
	"encoding/json"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// dashboardQueries are the expressions of a Grafana dashboard with its variables filled in: of its panels, its
// annotations and, as what they are made from, its variables.
func dashboardQueries(ts *testscript.TestScript, path string) (queries []string) {
	text, err := os.ReadFile(path)
	ts.Check(err)
	var d struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
		Annotations struct{ List []struct{ Expr string } }
		Templating  struct{ List []struct{ Query any } }
	}
	ts.Check(json.Unmarshal(text, &d))
	filled := strings.NewReplacer("$__rate_interval", "1m", "$__range", "1m", "$instance", ".*", "$job", ".*")
	for _, p := range d.Panels {
		if len(p.Targets) == 0 {
			ts.Fatalf("panel %q asks nothing", p.Title)
		}
		for _, t := range p.Targets {
			queries = append(queries, filled.Replace(t.Expr))
		}
	}
	for _, a := range d.Annotations.List {
		queries = append(queries, filled.Replace(a.Expr))
	}
	for _, v := range d.Templating.List {
		if q, ok := v.Query.(map[string]any); ok {
			series, label, _ := strings.Cut(strings.TrimPrefix(filled.Replace(q["query"].(string)), "label_values("), ", ")
			queries = append(queries, "count by ("+strings.TrimSuffix(label, ")")+") ("+series+")")
		}
	}
	return queries
}

// dashboard URL FILE evaluates every expression of a dashboard at a Prometheus, until each has an answer with a
// number in it.
func dashboard(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: dashboard URL FILE")
	}
	for _, query := range dashboardQueries(ts, ts.MkAbs(args[1])) {
		for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
			text, err := fetch(ts, args[0]+"/api/v1/query?query="+url.QueryEscape(query))
			var answer struct {
				Status string
				Data   struct{ Result []struct{ Value [2]any } }
			}
			if err == nil {
				err = json.Unmarshal(text, &answer)
			}
			if err == nil && answer.Status == "success" &&
				len(answer.Data.Result) > 0 && answer.Data.Result[0].Value[1] != "NaN" {
				ts.Logf("%s: %d", query, len(answer.Data.Result))
				break
			}
			if time.Now().After(end) {
				ts.Fatalf("%s: %v %s", query, err, text)
			}
		}
	}
}
