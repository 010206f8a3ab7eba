package agent

import (
	"reflect"
	"strings"
)

// keyPlaces says on which line of a TOML file each key stands.
type keyPlaces map[string]int

// keyLines finds the lines of the keys. The TOML library keeps positions to itself, except in
// errors of its own; for files as people write them (a table header or a key at the start of a
// line) a look at the lines is enough.
func keyLines(text string) keyPlaces {
	places := make(keyPlaces)
	table := ""
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			header, _, _ := strings.Cut(strings.Trim(line, "["), "]")
			table = strings.TrimSpace(header)
			places[normalKey(table)] = n
			continue
		}
		key, _, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		if table != "" {
			key = table + "." + key
		}
		places[normalKey(key)] = n
	}
	return places
}

// normalKey takes the quotes and spaces out of a dotted key.
func normalKey(key string) string {
	return strings.NewReplacer(`"`, "", `'`, "", " ", "", "\t", "").Replace(key)
}

// of returns the line of key, or of the nearest table above it; 0 when the file has neither.
func (p keyPlaces) of(key string) int {
	for key = normalKey(key); key != ""; {
		if line, ok := p[key]; ok {
			return line
		}
		i := strings.LastIndex(key, ".")
		if i < 0 {
			return 0
		}
		key = key[:i]
	}
	return 0
}

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
