package control

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"

	"ctguard/agent/config"
	"ctguard/agent/state"
	"ctguard/policy"
)

// HoldRequest pins, caps or freezes the level, as JSON.
type HoldRequest struct {
	Kind   policy.OverrideKind `json:"kind"`
	Level  int                 `json:"level"`
	For    string              `json:"for"` // a Go duration
	Reason string              `json:"reason"`
}

// PrefixRequest limits a prefix, or leaves it alone, as JSON.
type PrefixRequest struct {
	Prefix  string `json:"prefix"`
	Release bool   `json:"release"`
	For     string `json:"for"` // a Go duration
	Reason  string `json:"reason"`
}

// Request is what the loop is asked for: a [Hold], [Auto], [Baseline], [Word] or [Explain]. What can be
// judged without the loop is judged already.
type Request any

type (
	// Hold pins, caps or freezes the level for a time.
	Hold struct {
		Kind   policy.OverrideKind
		Level  int
		For    time.Duration
		Reason string
	}
	// Auto gives the level back.
	Auto struct{}
	// Baseline takes everything back and stays at level 0 for a time.
	Baseline struct {
		For    time.Duration
		Reason string
	}
	// Word is an operator's word on one prefix: it is limited, or released and left alone.
	Word struct {
		Prefix  netip.Prefix
		Release bool
		For     time.Duration
		Reason  string
	}
	// Explain asks why a prefix is limited or not; the only request whose answer has lines.
	Explain struct{ Prefix netip.Prefix }
)

// hold reads the body of POST /v1/hold.
func hold(r HoldRequest) (Request, error) {
	span, err := span(r.For, r.Reason)
	if err != nil {
		return nil, err
	}
	if !slices.Contains([]policy.OverrideKind{policy.Pin, policy.AtMost, policy.Freeze}, r.Kind) {
		return nil, fmt.Errorf("kind %.32q is none of pin, cap, freeze", r.Kind)
	}
	return Hold{r.Kind, r.Level, span, r.Reason}, nil
}

// baseline reads the body of POST /v1/revert, which has the fields of a hold.
func baseline(r HoldRequest) (Request, error) {
	span, err := span(r.For, r.Reason)
	return Baseline{span, r.Reason}, err
}

// auto reads the body of POST /v1/auto, which is empty.
func auto(struct{}) (Request, error) { return Auto{}, nil }

// word reads the body of POST /v1/prefix.
func word(r PrefixRequest) (Request, error) {
	span, err := span(r.For, r.Reason)
	if err != nil {
		return nil, err
	}
	prefix, err := config.ParsePrefix(r.Prefix)
	return Word{prefix, r.Release, span, r.Reason}, err
}

// maxReason is the length of a reason, in characters: it is kept, logged and shown to others.
const maxReason = 200

// span reads how long an operator's word holds; it must have an end and a reason that can be shown.
func span(text, reason string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 || d > state.MaxOverride {
		return 0, fmt.Errorf(`--for %.32q is no duration between 0s and %s, such as "30m"`, text, state.MaxOverride)
	}
	switch n := utf8.RuneCountInString(reason); {
	case n == 0:
		return 0, errors.New("a reason is needed: somebody will read it at three in the morning")
	case n > maxReason:
		return 0, fmt.Errorf("the reason has %d characters: %d are enough", n, maxReason)
	}
	for _, c := range reason {
		if !unicode.IsPrint(c) {
			return 0, fmt.Errorf("the reason has the character %U, which terminals and logs don't show as it is", c)
		}
	}
	return d, nil
}
