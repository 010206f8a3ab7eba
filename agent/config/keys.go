package config

import (
	"reflect"
	"strings"
)

// knownKeys lists every key that a configuration may have, as the tags of rawConfig name them; a
// part that the operator names is "*".
var knownKeys = keysOf(reflect.TypeFor[rawConfig](), "")

// keysOf lists the keys of a raw type below prefix.
func keysOf(t reflect.Type, prefix string) []string {
	var keys []string
	for i := range t.NumField() {
		field := t.Field(i)
		key := prefix + field.Tag.Get("toml")
		switch {
		case field.Type.Kind() == reflect.Struct:
			keys = append(keys, keysOf(field.Type, key+".")...)
		case field.Type.Kind() == reflect.Map && field.Type.Elem().Kind() == reflect.Struct:
			keys = append(keys, keysOf(field.Type.Elem(), key+".*.")...)
		default:
			keys = append(keys, key)
		}
	}
	return keys
}

// nearest suggests the known key that an unknown one may have been meant for: one that differs in
// no more than a third of its last word.
func nearest(key string) string {
	best, distance := "", max(2, (len(key)-strings.LastIndex(key, ".")-1)/3)+1
	depth := strings.Count(key, ".") + 1
	for _, known := range knownKeys {
		known = named(known, key)
		if words := strings.Split(known, "."); len(words) > depth {
			known = strings.Join(words[:depth], ".") // a table, for a key that is no deeper
		}
		if d := editDistance(key, known); d < distance {
			best, distance = known, d
		}
	}
	if best == "" {
		return "; docs/examples/ctguard.toml lists them all"
	}
	return "; did you mean " + best + "?"
}

// named puts the words of key where a known key leaves them to the operator.
func named(known, key string) string {
	words, parts := strings.Split(key, "."), strings.Split(known, ".")
	for i := range min(len(words), len(parts)) {
		if parts[i] == "*" {
			parts[i] = words[i]
		}
	}
	return strings.Join(parts, ".")
}

// editDistance returns how many characters must be changed, added or taken away to make b of a
// (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		previous := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := previous
			if a[i] != b[j] {
				cost = 1 + min(previous, row[j], row[j+1])
			}
			previous, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
