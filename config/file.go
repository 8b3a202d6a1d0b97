package config

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// entry is one statement of a file: a key with its value, or a table's header.
type entry struct {
	key   string
	place string
	table bool // a header; value is not set
	array bool // a header in double brackets
	value any
}

// parseFile returns the statements of a TOML file in their order.
//
// It reads the file twice. The decoder knows the values and all the rules (a
// key twice, a table reopened), but stops at the first value that does not fit
// a struct and gives no positions for the others; so it decodes into a map,
// which everything fits, and the positions come from the parser beneath it.
func parseFile(name string, data []byte) ([]entry, *Error) {
	values := make(map[string]any)
	if err := toml.Unmarshal(data, &values); err != nil {
		return nil, syntaxError(name, err)
	}

	var (
		entries []entry
		path    []string
		parser  unstable.Parser
	)
	parser.Reset(data)
	for parser.NextExpression() {
		node := parser.Expression()
		if node.Kind == unstable.KeyValue {
			entries = appendValue(entries, name, &parser, node, path, values)
			continue
		}
		// What remains is a header: comments are not kept.
		var place string
		path, place = keyOf(name, &parser, node)
		entries = append(entries, entry{
			key:   joinKey(path),
			place: place,
			table: true,
			array: node.Kind == unstable.ArrayTable,
		})
	}
	if err := parser.Error(); err != nil {
		return nil, syntaxError(name, err)
	}
	return entries, nil
}

// appendValue appends what a key-value statement below the table path says. An
// inline table is the same as one with a header.
func appendValue(entries []entry, name string, parser *unstable.Parser, node *unstable.Node, path []string, values map[string]any) []entry {
	sub, place := keyOf(name, parser, node)
	full := make([]string, 0, len(path)+len(sub))
	full = append(append(full, path...), sub...)

	if value := node.Value(); value.Kind == unstable.InlineTable && isTable(joinKey(full)) {
		for members := value.Children(); members.Next(); {
			entries = appendValue(entries, name, parser, members.Node(), full, values)
		}
		return entries
	}
	return append(entries, entry{key: joinKey(full), place: place, value: lookup(values, full)})
}

// keyOf returns the parts of a statement's key and where it stands.
func keyOf(name string, parser *unstable.Parser, node *unstable.Node) (parts []string, place string) {
	for it := node.Key(); it.Next(); {
		part := it.Node()
		if place == "" {
			start := parser.Shape(part.Raw).Start
			place = fmt.Sprintf("%s:%d:%d", name, start.Line, start.Column)
		}
		parts = append(parts, string(part.Data))
	}
	return parts, place
}

var bareKey = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// joinKey writes a key as TOML would, so that the single quoted key
// "relay.batch_size" is not taken for batch_size in the table relay.
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

// lookup returns the value at a path, or nil where it leads through an array
// of tables, none of which the configuration has.
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

// syntaxError places an error of the decoder. Its own rendering is not used,
// since that shows the lines around, whatever they hold.
func syntaxError(name string, err error) *Error {
	place := name
	if decode, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, column := decode.Position()
		place = fmt.Sprintf("%s:%d:%d", name, line, column)
	}
	return &Error{Place: place, Problem: err.Error()}
}

// textOf returns a value of the file as the environment would spell it, and
// false if it is not of the type. A duration without a unit is let through as a
// number, for the form to ask for the unit.
func textOf(value any, typ Type) (string, bool) {
	switch v := value.(type) {
	case string:
		return v, typ == TypeString || typ == TypeDuration
	case int64:
		return strconv.FormatInt(v, 10), typ == TypeInteger || typ == TypeDuration
	case bool:
		return strconv.FormatBool(v), typ == TypeBoolean
	default:
		return "", false
	}
}

// describe writes a value other than a string so that its type shows.
func describe(value any) string {
	switch v := value.(type) {
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
