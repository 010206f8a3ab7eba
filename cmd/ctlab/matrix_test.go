package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ctguard/cmd/ctlab/internal/lab"
)

// aroundRun is about what setting a run up and taking it down takes.
const aroundRun = 2500 * time.Millisecond

// The whole matrix takes less than a quarter of an hour.
func TestMatrixIsShort(t *testing.T) {
	o := matrixFlags{topologies: usualTopologies()}
	var total time.Duration
	for _, c := range o.plan() {
		for _, g := range c.guards {
			total += lab.Brief(lab.Scenario{Topology: c.topology, Attack: c.attack, Guard: g}).Length() + aroundRun
		}
	}
	t.Logf("%d contests, %v", len(o.plan()), total)
	if total > 15*time.Minute || total < time.Minute {
		t.Errorf("the matrix takes %v, want less than a quarter of an hour", total)
	}
}

// What is given is not made shorter.
func TestBriefKeepsWhatIsGiven(t *testing.T) {
	want := lab.Scenario{Attack: "ack", Guard: "none", Calm: time.Minute, AttackFor: time.Minute, After: time.Minute}
	if got := lab.Brief(want); got.Length() != 3*time.Minute {
		t.Errorf("a run of three minutes became one of %v", got.Length())
	}
}

// fakeMatrix is a matrix whose runs take no time.
func fakeMatrix(t *testing.T, run func(context.Context, lab.Scenario) (*lab.Result, error)) (*matrix, *bytes.Buffer) {
	var out bytes.Buffer
	return &matrix{flags: &scenarioFlags{quiet: true}, out: &out, progress: io.Discard, dir: t.TempDir(), run: run}, &out
}

func stood(sc lab.Scenario) *lab.Result {
	all := 100.0
	return &lab.Result{
		Scenario: sc, HTTP: lab.Service{During: &all, After: &all}, Lasting: lab.Lasting{Opened: 1, SessionAlive: true},
	}
}

// A matrix that is interrupted has shown and written what it has.
func TestInterruptedMatrix(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	runs := 0
	m, out := fakeMatrix(t, func(ctx context.Context, sc lab.Scenario) (*lab.Result, error) {
		if runs++; runs == 3 {
			interrupt()
			return nil, ctx.Err()
		}
		return stood(sc), nil
	})
	plan := []contest{{"server", "ack", []string{"none", "static", "ctguard"}}, {"server", "udp", []string{"none"}}}
	if err := m.all(ctx, plan); err == nil || !strings.Contains(err.Error(), "interrupted after 2 of 4") {
		t.Errorf("error is %v, want interrupted", err)
	}
	if runs != 3 {
		t.Errorf("%d runs, want none after the interruption", runs)
	}
	b, err := os.ReadFile(filepath.Join(m.dir, "server-ack.json"))
	var results []*lab.Result
	if err := errors.Join(err, json.Unmarshal(b, &results)); err != nil || len(results) != 2 {
		t.Errorf("%d results in the file (%v), want 2", len(results), err)
	}
	for _, file := range []string{"server-ack.svg", "matrix.md"} {
		if _, err := os.Stat(filepath.Join(m.dir, file)); err != nil {
			t.Error(err)
		}
	}
	if !strings.Contains(out.String(), "| server, ack | 100.0 %, 100.0 % | 100.0 %, 100.0 % |\n") {
		t.Errorf("the table is not there:\n%s", out)
	}
}

// One run that fails does not end the matrix, and is told in the end; so is a guard that did not
// stand its attack.
func TestMatrixGoesOn(t *testing.T) {
	m, out := fakeMatrix(t, func(_ context.Context, sc lab.Scenario) (*lab.Result, error) {
		res := stood(sc)
		switch sc.Guard {
		case "static":
			return nil, errors.New("no such luck")
		case "ctguard":
			res.Lasting.Lost = 1
		}
		return res, nil
	})
	err := m.all(t.Context(), []contest{{"server", "ack", []string{"none", "static", "ctguard"}}})
	for _, want := range []string{"guard static: no such luck", "ack, ctguard: 1 of 1 lasting connections were lost"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want one with %q", err, want)
		}
	}
	if !strings.Contains(out.String(), "| | none | ctguard |") {
		t.Errorf("the table is not there:\n%s", out)
	}
}
