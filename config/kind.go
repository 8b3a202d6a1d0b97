package config

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

// valueType is the TOML type of a setting. In the environment everything is text.
type valueType string

const (
	typeString   valueType = "string"
	typeInteger  valueType = "integer"
	typeBoolean  valueType = "boolean"
	typeDuration valueType = "duration" // A string in Go's notation, such as "1m30s".
)

// kind is the type of a setting and the rule for its values.
type kind struct {
	typ  valueType
	want string

	// parse stores what text says in c. If text is not accepted, parse leaves c alone. Its error is then advice that want
	// does not give, errRefused if there is none; if explains is set, it says all by itself. It never shows a password.
	parse    func(c *Config, text string) error
	explains bool

	// show is the inverse of parse, without passwords.
	show func(c *Config) string

	// copy gives the setting in to the value that it has in from.
	copy func(to, from *Config)

	// keep stores what parse does not accept. Only strings have it.
	keep func(c *Config, text string)

	// samples are values that parse accepts: for a range, its ends. There are none if no other setting depends on this one.
	samples []string
}

// errRefused says that a value is not accepted, for the reason that want gives.
var errRefused = errors.New("not accepted")

// accept returns nil or errRefused.
func accept(ok bool) error {
	if ok {
		return nil
	}
	return errRefused
}

// valueOf is a kind of which parse returns the value, and show writes it.
func valueOf[T any](at func(*Config) *T, typ valueType, want string, parse func(text string) (T, error), show func(T) string) kind {
	return kind{
		typ:  typ,
		want: want,
		parse: func(c *Config, text string) error {
			value, err := parse(text)
			if err == nil {
				*at(c) = value
			}
			return err
		},
		show: func(c *Config) string { return show(*at(c)) },
		copy: func(to, from *Config) { *at(to) = *at(from) },
	}
}

// text is the kind of strings that check accepts. Control characters and bytes that are not UTF-8 are never accepted.
func text(at func(*Config) *string, want string, check func(string) error) kind {
	parse := func(s string) (string, error) {
		if !printable(s) {
			return "", errRefused
		}
		return s, check(s)
	}
	k := valueOf(at, typeString, want, parse, func(s string) string { return s })
	k.keep = func(c *Config, text string) { *at(c) = text }
	return k
}

// explained is k if its errors say all by themselves.
func explained(k kind) kind {
	k.explains = true
	return k
}

func boolean(at func(*Config) *bool) kind {
	parse := func(text string) (bool, error) {
		v, err := strconv.ParseBool(text)
		return v, accept(err == nil)
	}
	k := valueOf(at, typeBoolean, "true or false", parse, strconv.FormatBool)
	k.samples = []string{"true", "false"}
	return k
}

func integer[T int | int64](at func(*Config) *T, low, high T) kind {
	want := fmt.Sprintf("an integer from %d to %d", low, high)
	if int64(low) == math.MinInt64 && int64(high) == math.MaxInt64 {
		want = "an integer of 64 bits"
	}
	parse := func(text string) (T, error) {
		n, err := strconv.ParseInt(text, 10, 64)
		return T(n), accept(err == nil && n >= int64(low) && n <= int64(high))
	}
	return valueOf(at, typeInteger, want, parse, func(n T) string { return strconv.FormatInt(int64(n), 10) })
}

var errNoUnit = errors.New(`give a unit, for example "1000ms"`)

func duration(at func(*Config) *time.Duration, low, high time.Duration) kind {
	parse := func(text string) (time.Duration, error) {
		d, err := time.ParseDuration(text)
		if err == nil {
			return d, accept(d >= low && d <= high)
		}
		if _, err := strconv.ParseFloat(text, 64); err == nil {
			return 0, errNoUnit
		}
		return 0, errRefused
	}
	want := fmt.Sprintf("a duration from %s to %s", formatDuration(low), formatDuration(high))
	k := valueOf(at, typeDuration, want, parse, formatDuration)
	k.samples = []string{low.String(), high.String()}
	return k
}

// formatDuration writes "10m" where Duration.String writes "10m0s".
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func choice[T ~string](at func(*Config) *T, options ...T) kind {
	names := make([]string, len(options))
	for i, option := range options {
		names[i] = string(option)
	}
	parse := func(text string) (T, error) { return T(text), accept(slices.Contains(names, text)) }
	k := valueOf(at, typeString, oneOf(names), parse, func(v T) string { return string(v) })
	k.samples = names
	return k
}

func logLevel(at func(*Config) *slog.Level) kind {
	levels := map[string]slog.Level{
		"debug": slog.LevelDebug,
		"info":  slog.LevelInfo,
		"warn":  slog.LevelWarn,
		"error": slog.LevelError,
	}
	parse := func(text string) (slog.Level, error) {
		v, ok := levels[strings.ToLower(text)]
		return v, accept(ok)
	}
	return valueOf(at, typeString, oneOf([]string{"debug", "info", "warn", "error"}), parse,
		func(v slog.Level) string { return strings.ToLower(v.String()) })
}

// oneOf lists names as `"a", "b" or "c"`.
func oneOf(names []string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = strconv.Quote(name)
	}
	last := len(quoted) - 1
	return strings.Join(quoted[:last], ", ") + " or " + quoted[last]
}

func dsn(at func(*Config) *Secret) kind {
	parse := func(text string) (Secret, error) {
		if text == "" {
			return "", errRefused // To libpq it means what its variables say.
		}
		return Secret(text), store.CheckDSN(text)
	}
	k := explained(valueOf(at, typeString, "a postgres:// URL or a connection string in keyword form (host=... dbname=...)", parse,
		func(s Secret) string {
			if s == "" {
				return ""
			}
			return store.RedactDSN(string(s))
		}))
	k.keep = func(c *Config, text string) { *at(c) = Secret(text) }
	return k
}

var errNoScheme = errors.New("a URL has no scheme: want one such as nats://127.0.0.1:4222, or several separated by commas")

func natsURL(at func(*Config) *Secret) kind {
	parse := func(text string) (Secret, error) {
		if text == NATSEmbedded {
			return NATSEmbedded, nil
		}
		for server := range strings.SplitSeq(text, ",") {
			if !strings.Contains(server, "://") {
				return "", errNoScheme // Package stream takes any word for a host. Here it may be a password in the wrong place.
			}
		}
		return Secret(text), stream.ConnectOptions{URL: text}.Validate()
	}
	return explained(valueOf(at, typeString, `comma separated URLs of the schemes nats, tls, ws or wss, or "embedded"`, parse,
		func(s Secret) string { return stream.RedactURL(string(s)) }))
}

func httpAddr() kind {
	k := text(func(c *Config) *string { return &c.HTTPAddr }, `host:port, where port 0 is any free one, or "off"`,
		func(s string) error { return accept(s == HTTPOff || validAddress(s)) })
	parse := k.parse
	k.parse = func(c *Config, text string) error {
		err := parse(c, text)
		if err == nil {
			c.HTTPAddrSet = true
		}
		return err
	}
	return k
}

func listenAddr(at func(*Config) *string) kind {
	return text(at, "host:port, where port 0 is any free one", func(s string) error { return accept(validAddress(s)) })
}

func validAddress(s string) bool {
	host, port, err := net.SplitHostPort(s)
	_, portErr := strconv.ParseUint(port, 10, 16)
	return err == nil && portErr == nil && !strings.ContainsAny(host, " /@")
}

func tableName(at func(*Config) *store.Table) kind {
	want := fmt.Sprintf(`"table" or "schema.table", the table of up to %d bytes`, store.MaxNameLen)
	return explained(valueOf(at, typeString, want, store.ParseTable, func(t store.Table) string {
		if t.Schema == store.DefaultSchema {
			return t.Name
		}
		return t.String()
	}))
}

func filePath(at func(*Config) *string) kind {
	return text(at, "the path of a readable file", func(string) error { return nil })
}

func directory(at func(*Config) *string) kind {
	return text(at, "the path of a directory", func(s string) error { return accept(s != "") })
}

func streamName(at func(*Config) *string) kind {
	return explained(text(at, `a name of up to 255 bytes without spaces and . * > / \`, func(s string) error {
		if s == "" {
			return errEmpty // To package stream it is the default.
		}
		return stream.Setup{Stream: s}.Validate()
	}))
}

var errEmpty = errors.New("is empty")

// electionKey is checked with the rest, and only if there is an election that needs one.
func electionKey(at func(*Config) *string) kind {
	return text(at, "letters, digits, - _ / = and single dots inside, or empty", func(string) error { return nil })
}

func domainName(at func(*Config) *string) kind {
	return explained(text(at, "a name without spaces and . * >, or empty", func(s string) error {
		return stream.ConnectOptions{URL: relayDefaultURL, Domain: s}.Validate()
	}))
}

func inboxPrefix(at func(*Config) *string) kind {
	return explained(text(at, "a subject without wildcards and without a dot at its end, such as _INBOX_relay, or empty", func(s string) error {
		return stream.ConnectOptions{URL: relayDefaultURL, InboxPrefix: s}.Validate()
	}))
}

func tags(at func(*Config) *string) kind {
	return explained(text(at, "tags separated by commas, or empty", func(s string) error {
		return stream.Setup{PlacementTags: Stream{PlacementTags: s}.Tags()}.Validate()
	}))
}

func subjectTemplate(at func(*Config) *string) kind {
	return explained(text(at, "a subject without spaces, of words and at least one of the placeholders {topic}, {aggregate_type}, {aggregate_id}, {event_type}", func(s string) error {
		if s == "" {
			return errEmpty // To package stream it is the default.
		}
		_, err := stream.ParseTemplate(s)
		return err
	}))
}

func uriReference(at func(*Config) *string) kind {
	template, _ := stream.ParseTemplate(stream.DefaultTemplate)
	return explained(text(at, `a URI reference, such as "/shop/orders", or empty`, func(s string) error {
		return stream.Encoder{Template: template, CloudEventsSource: s}.Validate()
	}))
}

// printable refuses control characters, NUL among them, and text that is not UTF-8: neither Postgres nor NATS takes them in
// a name, and nobody means them.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}
