package main

import (
	"context"
	"errors"
	"fmt"
	"image/png"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// page URL FILE [PATTERN] fetches what is public into a file, again and again until it matches.
func page(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: page URL FILE [PATTERN]")
	}
	pattern := regexp.MustCompile("")
	if len(args) == 3 {
		pattern = regexp.MustCompile(args[2])
	}
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		text, err := fetch(ts, args[0])
		if err == nil && pattern.Match(text) {
			ts.Check(os.WriteFile(ts.MkAbs(args[1]), text, 0o600))
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s does not have %q (%v):\n%s", args[0], pattern, err, text)
		}
	}
}

// fetch gets what is at a URL of the script's host.
func fetch(ts *testscript.TestScript, url string) ([]byte, error) {
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			err = inside(place(ts, "host"), func() (err error) {
				c, err = new(net.Dialer).DialContext(ctx, network, address)
				return err
			})
			return c, err
		}}}
	response, err := client.Get(url)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if response.StatusCode != http.StatusOK {
		err = errors.Join(err, fmt.Errorf("answer %s", response.Status))
	}
	return text, err
}

// browse ARGS... has chromium do something, with no window and no network but the script's. It must find nothing to
// complain about on the page.
func browse(ts *testscript.TestScript, neg bool, args []string) {
	c := exec.Command("chromium", append([]string{
		"--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
		"--user-data-dir=" + ts.MkAbs("chromium"), "--hide-scrollbars", "--enable-logging=stderr"}, args...)...)
	c.Dir = ts.MkAbs(".")
	out, err := c.CombinedOutput()
	if neg || err != nil {
		ts.Fatalf("chromium: %v\n%s", err, out)
	}
	if complaint := regexp.MustCompile(`(?m)^.*:CONSOLE.*$`).Find(out); complaint != nil {
		ts.Fatalf("chromium: %s", complaint)
	}
}

// pixel FILE X Y RRGGBB checks the colour of one pixel of a picture.
func pixel(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 4 {
		ts.Fatalf("usage: pixel FILE X Y RRGGBB")
	}
	f, err := os.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	picture, err := png.Decode(f)
	ts.Check(err)
	x, err := strconv.Atoi(args[1])
	ts.Check(err)
	y, err := strconv.Atoi(args[2])
	ts.Check(err)
	r, g, b, _ := picture.At(x, y).RGBA()
	if got := fmt.Sprintf("%02x%02x%02x", r>>8, g>>8, b>>8); got != args[3] {
		ts.Fatalf("%s has %s at %d,%d, want %s", args[0], got, x, y, args[3])
	}
}
