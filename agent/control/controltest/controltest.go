package controltest

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Ask sends a request, "PATH" or "PATH BODY", and returns code and text of the answer.
func Ask(socket, request string) (int, string, error) {
	path, body, post := strings.Cut(request, " ")
	method := http.MethodGet
	if post {
		method = http.MethodPost
	}
	r, err := http.NewRequest(method, "http://ctguard"+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}}
	response, err := client.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, strings.TrimSpace(string(text)), err
}

// MustAsk asks what must be answered with a code, and returns the text.
func MustAsk(tb testing.TB, socket, request string, want int) string {
	tb.Helper()
	code, text, err := Ask(socket, request)
	if err != nil {
		tb.Fatalf("%.80s: %v", request, err)
	}
	if code != want {
		tb.Fatalf("%.80s: answer %d %s, want %d", request, code, text, want)
	}
	return text
}
