package control

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"golang.org/x/time/rate"

	"ctguard/agent/state"
)

// Whatever root asks, the answer is one of those that are documented, and what reaches the loop has a reason
// and an end.
func FuzzRequest(f *testing.F) {
	for _, seed := range [][2]string{{"hold", `{"kind":"pin","level":4,"for":"1h","reason":"x"}`}, {"auto", `{}`},
		{"revert", `{"for":"15m","reason":"x"}`}, {"prefix", `{"prefix":"10.0.0.0/8","for":"1m","reason":"x"}`},
		{"hold", `{"for":"-1h"}`}, {"hold", `[1,2]`}, {"hold", `{"kind":"pin"}{"kind":"pin"}`}, {"hold", "\xff"},
		{"explain?prefix=10.0.0.1", ""}, {"events?since=x", ""}, {"events?since=18446744073709551615", ""}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, path, body string) {
		b := NewBoard()
		s := &Server{limits: usual, board: b, followers: newPlaces(8, 4), changes: rate.NewLimiter(rate.Inf, 1)}
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), peerKey{}, &state.Credentials{}))
		defer cancel()
		go func() {
			for {
				select {
				case q := <-b.Questions():
					judge(q.Request)
					q.Answer(nil, nil)
				case <-ctx.Done():
					return
				}
			}
		}()
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			r, err := http.NewRequestWithContext(ctx, method, "http://ctguard/v1/"+path, strings.NewReader(body))
			if err != nil || strings.Contains(r.URL.RawQuery, "wait") {
				return
			}
			w := httptest.NewRecorder()
			s.handler().ServeHTTP(w, r)
			switch w.Code {
			case http.StatusOK, http.StatusNoContent, http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed,
				http.StatusServiceUnavailable, http.StatusMovedPermanently, http.StatusTemporaryRedirect:
			default:
				t.Errorf("%s %q %q: answer %d %s", method, path, body, w.Code, w.Body)
			}
		}
	})
}

// judge panics where something reaches the loop that must not.
func judge(r Request) {
	fine := true
	switch r := r.(type) {
	case Hold:
		fine = r.For > 0 && r.Reason != ""
	case Baseline:
		fine = r.For > 0 && r.Reason != ""
	case Word:
		fine = r.For > 0 && r.Reason != "" && r.Prefix.IsValid()
	case Explain:
		fine = r.Prefix.IsValid()
	}
	if !fine {
		panic(r)
	}
}
