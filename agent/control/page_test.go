package control

import (
	"crypto/sha256"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"ctguard/policy"
)

// hostile is what must never get into a page as it is.
const hostile = `<script>alert(1)</script>"'><img src=x onerror=alert(2)>`

// busy is a board of a host under attack, with hostile texts wherever a text may come from elsewhere.
func busy() *Board {
	b := NewBoard()
	now := time.Now()
	source := netip.MustParsePrefix("203.0.113.77/32")
	since := now.Add(-time.Minute)
	full := 12.0
	s := &Status{Mode: "hold", Version: "1.2.3", Profile: policy.Server, Level: 2, TopStep: "tighten", Fill: 91.4,
		Pressure: 97, Count: 914, Capacity: 1000, Rate: 50, SecondsToFull: &full, KernelDrops: 7,
		Steps: []policy.StepStatus{{Name: "grow", Skipped: hostile + "203.0.113.77"},
			{Name: "tighten", Engaged: true, Since: &since, Enter: 80, Leave: 65, Reason: hostile, Work: 4321}},
		Limited:  []LimitedStatus{{Prefix: source, Kind: "limit", Entries: 500, Until: now, Reason: hostile}},
		Holders:  &HoldersStatus{Sources: []HolderStatus{{Prefix: source, Entries: 500, Usual: 3}}},
		Override: &policy.Override{Kind: policy.Pin, Level: 2, Until: now, Reason: hostile},
		Degraded: []string{hostile + "203.0.113.77"},
	}
	for i := range 600 {
		one := *s
		one.Time = now.Add(time.Duration(i-599) * time.Second)
		one.Fill = float64(i) / 6
		b.Publish(&one)
	}
	from, to := 0, 2
	b.Tell(policy.Event{Time: now.Add(-time.Minute), Kind: policy.LevelEvent, From: &from, To: &to,
		Reason: hostile + "203.0.113.77", Fill: 88})
	b.Tell(policy.Event{Time: now, Kind: policy.LimitEvent, Prefix: source, Reason: hostile})
	return b
}

// get gets a path of a public address: code, header and text of the answer.
func get(t *testing.T, url string) (int, http.Header, string) {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, response.Header, string(text)
}

// The page shows how things stand; it has nothing to run, fetch, frame or send, and a browser is told so; what comes
// from elsewhere is text.
func TestPage(t *testing.T) {
	server := httptest.NewServer(&page{board: busy(), details: true})
	defer server.Close()
	_, header, text := get(t, server.URL)
	for _, want := range []string{"level 2 of 2, tighten", "914 of 1000", "full in 12 s", "engaged 1m0s",
		"<td class=\"w\">203.0.113.77</td>",
		"level 0 to 2", "class=\"mark\"", "80 tighten", "&lt;script&gt;", "4321", "15 minutes", "limited sources"} {
		if !strings.Contains(strings.ToLower(text), strings.ToLower(want)) {
			t.Errorf("the page does not have %q", want)
		}
	}
	if found := regexp.MustCompile(`(?i)<script|<img|<iframe|<link|<form|onerror=alert\(2\)>|` +
		`\sstyle=|href=|\son\w+="|url\(|@import`).
		FindString(text); found != "" {
		t.Errorf("the page has %q", found)
	}
	style := regexp.MustCompile(`(?s)<style>(.*?)</style>`).FindStringSubmatch(text)
	sum := sha256.Sum256([]byte(style[1]))
	csp := header.Get("Content-Security-Policy")
	if !strings.Contains(csp, "style-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'") ||
		!strings.HasPrefix(csp, "default-src 'none'; ") || strings.Contains(csp, "unsafe") {
		t.Errorf("the policy is %q", csp)
	}
	if strings.Contains(text, "ZgotmplZ") || strings.Contains(text, "NaN") {
		t.Error("the template refused a value")
	}
}

// Without details the page has figures only: no source, no reason, nothing of what was found of this host.
func TestPageWithoutDetails(t *testing.T) {
	server := httptest.NewServer(&page{board: busy()})
	defer server.Close()
	_, _, text := get(t, server.URL)
	if found := regexp.MustCompile(`203\.0\.113|alert|script`).FindString(text); found != "" {
		t.Errorf("the page has %q", found)
	}
	for _, want := range []string{"914 of 1000", "4321", "level 0 to 2", "ctguard status says why"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not have %q", want)
		}
	}
}

// The page is drawn once a second, however many ask; before the first tick there is none.
func TestPageIsCheap(t *testing.T) {
	p := &page{board: NewBoard()}
	if _, err := p.current(); err == nil {
		t.Error("there is a page before there is anything to show")
	}
	p.board = busy()
	first, err := p.current()
	if err != nil {
		t.Fatal(err)
	}
	drawn := p.drawn
	for range 1000 {
		if text, _ := p.current(); &text[0] != &first[0] && time.Since(drawn) < time.Second {
			t.Fatal("the page was drawn again")
		}
	}
	p.drawn = time.Now().Add(-time.Second)
	if text, err := p.current(); err != nil || &text[0] == &first[0] {
		t.Errorf("the page was not drawn again: %v", err)
	}
	if len(first) > 100_000 {
		t.Errorf("the page has %d bytes", len(first))
	}
}

// The public address has the metrics and the page, and nothing that may be changed or that names anybody.
func TestPublicAddress(t *testing.T) {
	r := start(t, Options{Metrics: "127.0.0.1:0"}, usual)
	url := "http://" + r.server.services[1].listener.Addr().String()
	for path, want := range map[string]int{"/": 200, "/metrics": 200, "/v1/status": 404, "/v1/history": 404,
		"/v1/events": 404, "/favicon.ico": 404} {
		if code, _, _ := get(t, url+path); code != want {
			t.Errorf("%s: answer %d, want %d", path, code, want)
		}
	}
	response, err := http.Post(url, "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST is answered with %d", response.StatusCode)
	}
}

func BenchmarkPage(b *testing.B) {
	board := busy()
	p := &page{board: board, details: true}
	for b.Loop() {
		if _, err := p.draw(board.Status(), board.Points(allHistory), board.Recent(100)); err != nil {
			b.Fatal(err)
		}
	}
}
