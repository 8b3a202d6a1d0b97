package config

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// entry is what a file says at one place: a key and its value. A table that the configuration does not have is one entry.
type entry struct {
	key   string
	place string
	value any
}

// parseFile returns the entries of a TOML file in their order.
//
// The decoder gives no places for what it decodes. So parseFile decodes into a map first, which takes every value: it then
// knows that the file keeps all rules of TOML (no key twice, say), and the values. The places come from the decoder's
// error for unknown keys.
func parseFile(name string, data []byte) ([]entry, *Error) {
	values := make(map[string]any)
	if err := toml.Unmarshal(data, &values); err != nil {
		return nil, syntaxError(name, err)
	}
	headed, err := headedTables(data, values)
	if err != nil {
		return nil, syntaxError(name, err)
	}
	keys, err := unknownKeys(data, headed)
	if err != nil {
		return nil, syntaxError(name, err)
	}

	var entries []entry
	listed := make(map[string]bool) // An array of tables has its key several times.
	for _, found := range keys {
		line, column := found.Position()
		e := entry{joinKey(found.Key()), fmt.Sprintf("%s:%d:%d", name, line, column), lookup(values, found.Key())}
		if listed[e.key] {
			continue
		}
		listed[e.key] = true
		inline, ok := e.value.(map[string]any)
		if !ok || !isTable(e.key) {
			entries = append(entries, e)
			continue
		}
		for _, key := range slices.Sorted(maps.Keys(inline)) { // All of it is at one place: it is one line.
			entries = append(entries, entry{e.key + "." + joinKey([]string{key}), e.place, inline[key]})
		}
	}
	return entries, nil
}

// headedTables returns those of our tables that the file does not write as an inline table, relay = {batch_size = 1}.
func headedTables(data []byte, values map[string]any) ([]string, error) {
	keys, err := unknownKeys(data, nil)
	if err != nil {
		return nil, err
	}
	lines := bytes.Split(data, []byte("\n"))
	inline := make(map[string]bool)
	for _, found := range keys {
		line, column := found.Position()
		before := lines[line-1][:column-1]
		if !bytes.HasSuffix(bytes.TrimSpace(before), []byte("[")) {
			inline[joinKey(found.Key())] = true
		}
	}
	return slices.DeleteFunc(tables(), func(table string) bool {
		_, ok := values[table].(map[string]any)
		return !ok || inline[table]
	}), nil
}

// unknownKeys returns every key of a file, with its place. Of a table it returns the name alone, unless it is one of the
// headed tables: of these it returns the keys. (Of the keys in an inline table the decoder does not give the table's name.)
func unknownKeys(data []byte, headed []string) ([]toml.DecodeError, error) {
	known := make([]reflect.StructField, len(headed)) // The decoder's error is about what a struct does not have.
	for i, table := range headed {
		known[i] = reflect.StructField{Name: strings.ToUpper(table), Type: reflect.TypeFor[struct{}](), Tag: reflect.StructTag(`toml:"` + table + `"`)}
	}
	target := reflect.New(reflect.StructOf(known)).Interface()
	err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(target)
	if unknown, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		return unknown.Errors, nil
	}
	return nil, err
}

var bareKey = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// joinKey writes a key as TOML would, so that the single quoted key "relay.batch_size" is not taken for batch_size in the
// table relay.
func joinKey(parts []string) string {
	written := make([]string, len(parts))
	for i, part := range parts {
		written[i] = part
		if !bareKey.MatchString(part) {
			written[i] = strconv.Quote(part)
		}
	}
	return strings.Join(written, ".")
}

// lookup returns the value at a path, or nil where it leads through an array of tables, none of which the configuration has.
func lookup(values map[string]any, path []string) any {
	for _, part := range path[:len(path)-1] {
		next, ok := values[part].(map[string]any)
		if !ok {
			return nil
		}
		values = next
	}
	return values[path[len(path)-1]]
}

// syntaxError places an error of the decoder. Its own rendering is not used, since that shows the lines around, whatever
// they hold.
func syntaxError(name string, err error) *Error {
	place := name
	if decode, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, column := decode.Position()
		place = fmt.Sprintf("%s:%d:%d", name, line, column)
	}
	return &Error{Place: place, Problem: err.Error()}
}

// textOf returns a value of the file as the environment would spell it, and false if it is not of the type. A duration
// without a unit is let through as a number, and the setting's kind asks for the unit.
func textOf(value any, typ valueType) (string, bool) {
	switch v := value.(type) {
	case string:
		return v, typ == typeString || typ == typeDuration
	case int64:
		return strconv.FormatInt(v, 10), typ == typeInteger || typ == typeDuration
	case bool:
		return strconv.FormatBool(v), typ == typeBoolean
	default:
		return "", false
	}
}

// describe writes a value so that its type shows. It writes no part of an array or a table.
func describe(value any) string {
	switch v := value.(type) {
	case string:
		return quote(v)
	case int64:
		return strconv.FormatInt(v, 10)
	case float64:
		return "the float " + strconv.FormatFloat(v, 'g', -1, 64)
	case bool:
		return strconv.FormatBool(v)
	case []any:
		return "an array"
	case map[string]any:
		return "a table"
	default:
		return "a date or time"
	}
}
