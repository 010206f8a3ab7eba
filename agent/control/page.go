package control

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"ctguard/policy"
)

//go:embed page.html.tmpl
var pageTemplate string

//go:embed page.css
var pageStyle string

var pageHTML = template.Must(template.New("page").Funcs(template.FuncMap{
	"clock": func(t time.Time) string { return t.Format("Jan 2 15:04:05") }, "state": stepState,
	"what":    eventName,
	"seconds": func(s *float64) string { return fmt.Sprintf("%.0f", *s) },
}).Parse(pageTemplate))

// pagePolicy lets a browser show the page's own style and nothing else: no script, no picture, no frame, no form.
// Whatever might get into the page, it has nothing to run and nowhere to go.
var pagePolicy = func() string {
	sum := sha256.Sum256([]byte(pageStyle))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}()

// page is the page that everybody sees who reaches the metrics. It is drawn once a second at most, whoever asks and
// how often, and all get the same bytes. Without details it has what the metrics have, as a picture: no address, no
// text that is an operator's or that tells of this host's rules.
type page struct {
	board   *Board
	details bool

	mu    sync.Mutex
	drawn time.Time
	text  []byte
}

// ServeHTTP sends the page.
func (p *page) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	text, err := p.current()
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	_, _ = w.Write(text) // where the other side is gone there is nobody to tell
}

// current returns the page, drawn anew if it is older than a second.
func (p *page) current() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.text != nil && time.Since(p.drawn) < time.Second {
		return p.text, nil
	}
	status := p.board.Status()
	if status == nil {
		return nil, errors.New("starting")
	}
	text, err := p.draw(status, p.board.Points(allHistory), p.board.Recent(100))
	if err == nil {
		p.text, p.drawn = text, time.Now()
	}
	return text, err
}

// pageData is what the template draws.
type pageData struct {
	*Status
	Details      bool
	Style        template.CSS
	Where        string // this host's name
	Left, Top    int    // of every chart
	Window       string
	Refused      uint64
	Charts       []fillChart
	FirstLimited []LimitedStatus
	Newest       []NumberedEvent
}

// draw draws the page.
func (p *page) draw(s *Status, points []Point, events []NumberedEvent) ([]byte, error) {
	window := windowOf(points)
	d := pageData{Status: s, Details: p.details, Style: template.CSS(pageStyle), Left: chartLeft, Top: chartTop,
		Window: spanName(window), FirstLimited: s.Limited[:min(20, len(s.Limited))],
		Charts: []fillChart{newChart("wide", 960, 300, s, points, events, window),
			newChart("narrow", 400, 300, s, points, events, window)}}
	for _, p := range points {
		d.Refused += p.Drops
	}
	if p.details {
		d.Where, _ = os.Hostname() // without a name there is none on the page
	}
	d.Newest = slices.Clone(events[max(0, len(events)-20):])
	slices.Reverse(d.Newest)
	var out bytes.Buffer
	err := pageHTML.Execute(&out, d)
	return out.Bytes(), err
}

// stepState says whether a step is engaged, and for how long.
func stepState(s policy.StepStatus, now time.Time) string {
	switch {
	case s.Skipped != "":
		return "skipped"
	case s.Engaged && s.Since != nil:
		return "engaged " + now.Sub(*s.Since).Round(time.Second).String()
	}
	return "off"
}

// eventName says what kind of event one is, from its numbers alone unless details may be told.
func eventName(e NumberedEvent, details bool) string {
	text := string(e.Kind)
	if e.From != nil && e.To != nil {
		text += fmt.Sprintf(" %d to %d", *e.From, *e.To)
	}
	if e.Step != "" {
		text += " " + string(e.Step)
	}
	if details && e.Prefix.IsValid() {
		text += " " + e.Source().Short()
	}
	if e.DryRun {
		text += " (dry run)"
	}
	return text
}

// ShortPrefix writes a prefix that is one address as that address.
func ShortPrefix(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}
