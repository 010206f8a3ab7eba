package main

import "regexp"

// single is a prefix within a text that is one address.
var single = regexp.MustCompile(`\b(\d+\.\d+\.\d+\.\d+)/32\b|([0-9a-fA-F:]*:[0-9a-fA-F:.]*)/128\b`)

// forPeople writes the prefixes within a text that are one address as that address: JSON keeps their lengths.
func forPeople(text string) string { return single.ReplaceAllString(text, "$1$2") }
