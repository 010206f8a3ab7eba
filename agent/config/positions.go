package config

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// positions says on which line of a TOML file each key stands; keys are written as [normalKey] does.
type positions map[string]int

// document is a TOML file before it is decoded into types: where its keys stand, and its faults of type.
type document struct {
	lines  positions
	faults []*Error
}

// locator takes any value and refuses it: the library then says where the value's key stands. It keeps
// positions to itself otherwise: MetaData has the keys and their types, but no lines.
type locator struct{}

var errLocated = errors.New("located")

// UnmarshalTOML always fails.
func (*locator) UnmarshalTOML(any) error { return errLocated }

// read finds the positions of all keys of a file, and the values whose type is not that of t's field. It
// returns a [*Error] for a file that is no TOML.
func read(path string, text []byte, t reflect.Type) (*document, error) {
	var top map[string]toml.Primitive
	meta, err := toml.Decode(string(text), &top)
	if err != nil {
		return nil, libraryError(path, err)
	}
	d := &document{lines: make(positions)}
	d.walk(path, &meta, nil, top, t)
	return d, nil
}

// walk looks at the keys of one table, which is decoded into t; t is nil where nobody knows the table.
func (d *document) walk(path string, meta *toml.MetaData, table toml.Key, keys map[string]toml.Primitive,
	t reflect.Type) {
	for name, value := range keys {
		key := slices.Concat(table, toml.Key{name})
		var p toml.ParseError
		if errors.As(meta.PrimitiveDecode(value, new(locator)), &p) && p.Position.Line > 0 {
			d.lines[normalKey(key.String())] = p.Position.Line // a table that only its parts name has no line
		}
		var decoded any
		if err := meta.PrimitiveDecode(value, &decoded); err != nil {
			continue // decoding into types meets it again
		}
		field := fieldOf(t, name)
		if field != nil {
			if text := misfit(key, decoded, field); text != "" {
				d.faults = append(d.faults, &Error{path, d.lines.of(key.String()), key.String(), text})
				field = nil
			}
		}
		var below map[string]toml.Primitive
		if _, isTable := decoded.(map[string]any); isTable && meta.PrimitiveDecode(value, &below) == nil {
			d.walk(path, meta, key, below, field)
		}
	}
}

// fieldOf returns the type that a key of a table is decoded into, nil if nobody knows the key. Like the
// library it takes a name in other letters' case.
func fieldOf(table reflect.Type, name string) reflect.Type {
	if table == nil {
		return nil
	}
	switch table.Kind() {
	case reflect.Map:
		return table.Elem()
	case reflect.Struct:
		for i := range table.NumField() {
			if field := table.Field(i); strings.EqualFold(field.Tag.Get("toml"), name) {
				return field.Type
			}
		}
	default:
	}
	return nil
}

var textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()

// misfit says what is wrong with the type of a value that is to be decoded into t; nothing if it fits.
func misfit(key toml.Key, value any, t reflect.Type) string {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	var is, wanted string
	var fits bool
	switch v := value.(type) {
	case string:
		is, fits = "a string", t.Kind() == reflect.String || reflect.PointerTo(t).Implements(textUnmarshaler)
	case int64:
		is, fits = "a number", t.Kind() == reflect.Int || t.Kind() == reflect.Float64
	case float64:
		is, fits = "a number with a fraction", t.Kind() == reflect.Float64
	case bool:
		is, fits = "true or false", t.Kind() == reflect.Bool
	case map[string]any:
		is, fits = "a table", t.Kind() == reflect.Map || t.Kind() == reflect.Struct
	case []any:
		if t.Kind() == reflect.Slice {
			for _, element := range v {
				if text := misfit(key, element, t.Elem()); text != "" {
					return text
				}
			}
		}
		is, fits = "a list", t.Kind() == reflect.Slice
	case []map[string]any:
		is = "a list of tables"
	default:
		is = "a date"
	}
	if fits {
		return ""
	}
	switch {
	case reflect.PointerTo(t).Implements(textUnmarshaler):
		wanted = `a duration in quotes, such as "250ms", "10s" or "1h30m"`
	case t.Kind() == reflect.Map:
		return fmt.Sprintf("is no table: write [%s] and its keys below", key)
	default:
		wanted = kindNames[t.Kind()]
	}
	return fmt.Sprintf("is %s: write %s", is, wanted)
}

// kindNames are the types of the file in the words of those who write TOML.
var kindNames = map[reflect.Kind]string{
	reflect.String: "a string", reflect.Int: "a whole number", reflect.Float64: "a number", reflect.Bool: "true or false",
	reflect.Slice: "a list", reflect.Struct: "a table",
}

// libraryError makes a [*Error] of what the TOML library says.
func libraryError(path string, err error) *Error {
	var p toml.ParseError
	if !errors.As(err, &p) {
		return &Error{File: path, Text: strings.TrimPrefix(err.Error(), "toml: ")}
	}
	message := p.Message
	if message == "" { // some errors have their text only in the whole
		_, after, _ := strings.Cut(p.Error(), "): ")
		message = cmp.Or(after, strings.TrimPrefix(p.Error(), "toml: "))
	}
	return &Error{path, p.Position.Line, p.LastKey, message}
}

// normalKey takes the quotes and spaces out of a dotted key.
func normalKey(key string) string {
	return strings.NewReplacer(`"`, "", `'`, "", " ", "", "\t", "").Replace(key)
}

// of returns the line of key, or of the nearest table above it; 0 when the file has neither.
func (p positions) of(key string) int {
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
