package config

import (
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
)

// Type is what a setting is in the file. In the environment everything is text.
type Type string

// The types of settings.
const (
	// TypeString is a TOML string.
	TypeString Type = "string"

	// TypeInteger is a TOML integer.
	TypeInteger Type = "integer"

	// TypeBoolean is a TOML boolean.
	TypeBoolean Type = "boolean"

	// TypeDuration is a TOML string in Go's notation, such as "1m30s".
	TypeDuration Type = "duration"
)

// form is what the values of a field look like.
type form struct {
	typ  Type
	want string

	// secret says that a value is shown through Redact only.
	secret bool

	// parse stores what text says in c. It leaves c alone and returns false if
	// text is not of the form; hint then says what want does not.
	parse func(c *Config, text string) (hint string, ok bool)

	// show is the inverse of parse, short of passwords.
	show func(c *Config) string
}

// checked is the form of strings that check accepts.
func checked(at func(*Config) *string, want string, check func(string) (hint string, ok bool)) form {
	return form{
		typ:  TypeString,
		want: want,
		parse: func(c *Config, text string) (string, bool) {
			hint, ok := check(text)
			if ok {
				*at(c) = text
			}
			return hint, ok
		},
		show: func(c *Config) string { return *at(c) },
	}
}

// checkedSecret is the form of connection strings that check accepts.
func checkedSecret(at func(*Config) *Secret, want string, check func(string) (hint string, ok bool)) form {
	return form{
		typ:    TypeString,
		want:   want,
		secret: true,
		parse: func(c *Config, text string) (string, bool) {
			hint, ok := check(text)
			if ok {
				*at(c) = Secret(text)
			}
			return hint, ok
		},
		show: func(c *Config) string { return at(c).String() },
	}
}

func boolean(at func(*Config) *bool) form {
	return form{
		typ:  TypeBoolean,
		want: "true or false",
		parse: func(c *Config, text string) (string, bool) {
			v, err := strconv.ParseBool(text)
			if err == nil {
				*at(c) = v
			}
			return "", err == nil
		},
		show: func(c *Config) string { return strconv.FormatBool(*at(c)) },
	}
}

func integer[T int | int64](at func(*Config) *T, low, high T) form {
	want := fmt.Sprintf("an integer from %d to %d", low, high)
	if int64(low) == math.MinInt64 && int64(high) == math.MaxInt64 {
		want = "an integer of 64 bits"
	}
	return form{
		typ:  TypeInteger,
		want: want,
		parse: func(c *Config, text string) (string, bool) {
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil || n < int64(low) || n > int64(high) {
				return "", false
			}
			*at(c) = T(n)
			return "", true
		},
		show: func(c *Config) string { return strconv.FormatInt(int64(*at(c)), 10) },
	}
}

func duration(at func(*Config) *time.Duration, low, high time.Duration) form {
	return form{
		typ:  TypeDuration,
		want: fmt.Sprintf("a duration from %s to %s", formatDuration(low), formatDuration(high)),
		parse: func(c *Config, text string) (string, bool) {
			d, err := time.ParseDuration(text)
			if err != nil {
				if _, err := strconv.ParseFloat(text, 64); err == nil {
					return `give a unit, for example "1000ms"`, false
				}
				return "", false
			}
			if d < low || d > high {
				return "", false
			}
			*at(c) = d
			return "", true
		},
		show: func(c *Config) string { return formatDuration(*at(c)) },
	}
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

func choice[T ~string](at func(*Config) *T, options ...T) form {
	names := make([]string, len(options))
	for i, option := range options {
		names[i] = string(option)
	}
	return form{
		typ:  TypeString,
		want: oneOf(names),
		parse: func(c *Config, text string) (string, bool) {
			i := slices.Index(names, text)
			if i >= 0 {
				*at(c) = options[i]
			}
			return "", i >= 0
		},
		show: func(c *Config) string { return string(*at(c)) },
	}
}

func logLevel(at func(*Config) *slog.Level) form {
	levels := map[string]slog.Level{
		"debug": slog.LevelDebug,
		"info":  slog.LevelInfo,
		"warn":  slog.LevelWarn,
		"error": slog.LevelError,
	}
	return form{
		typ:  TypeString,
		want: oneOf([]string{"debug", "info", "warn", "error"}),
		parse: func(c *Config, text string) (string, bool) {
			v, ok := levels[strings.ToLower(text)]
			if ok {
				*at(c) = v
			}
			return "", ok
		},
		show: func(c *Config) string { return strings.ToLower(at(c).String()) },
	}
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

func dsn(at func(*Config) *Secret) form {
	return checkedSecret(at, "a postgres:// URL or a connection string in keyword form (host=... dbname=...)", checkDSN)
}

// checkDSN asks pgx whether it understands the connection string, since pgx is
// who will have to; like then, PG variables and libpq's files fill in what the
// string leaves out. Which of its parameters can work, package store knows.
//
// The error pgx gives quotes the string, with the password masked as well as it
// can tell where that is. Only what follows the quotation is passed on, and
// only if the string is regular enough for its parts to be certain. One that is
// not is refused even if pgx makes something of it: what it takes for a host
// may be the rest of a password, and would be logged.
func checkDSN(s string) (hint string, ok bool) {
	const (
		encode = "it cannot be parsed; special characters of a password must be percent-encoded in a URL, and quoted in keyword form"
		jdbc   = "leave out jdbc:, and write the user and the password before the host"
	)
	if strings.HasPrefix(strings.ToLower(strings.TrimSpace(s)), "jdbc:") {
		return jdbc, false
	}
	// pgx takes what has no scheme it knows for keywords, and so
	// mysql://h/d?x=1 for the value 1 of a keyword with an odd name.
	keywords := strings.Contains(s, "=") && !scheme.MatchString(s)
	if !isPostgresURL(s) && !keywords {
		return "", false
	}
	if _, certain := redact(s); !certain || isPostgresURL(s) && strings.Count(s, "@") > 1 {
		return encode, false
	}
	_, err := pgconn.ParseConfig(s)
	if err == nil {
		return "", true
	}
	msg := err.Error()
	msg = strings.TrimPrefix(msg[strings.LastIndexByte(msg, '`')+1:], ": ")
	if strings.HasPrefix(msg, "failed to parse as") {
		return encode, false // It may quote a part.
	}
	// What follows these quotes a value.
	for _, opening := range []string{"unknown target_session_attrs value", "invalid sslcertmode", "invalid connect_timeout", "unknown channel_binding value", "invalid require_auth", "invalid min_protocol_version", "invalid max_protocol_version", "failed to read service"} {
		if strings.HasPrefix(msg, opening) {
			return opening, false
		}
	}
	return msg, false
}

func isPostgresURL(s string) bool {
	return strings.HasPrefix(s, "postgres://") || strings.HasPrefix(s, "postgresql://")
}

func natsURL(at func(*Config) *Secret) form {
	return checkedSecret(at, `comma separated URLs of the schemes nats, tls, ws or wss, or "embedded"`, checkNATSURL)
}

// checkNATSURL drops the errors of package url, which quote what they refuse.
func checkNATSURL(s string) (hint string, ok bool) {
	if s == NATSEmbedded {
		return "", true
	}
	var plain, webSocket bool
	for part := range strings.SplitSeq(s, ",") {
		u, err := url.Parse(strings.TrimSpace(part))
		if err != nil {
			return "", false
		}
		switch u.Scheme {
		case "nats", "tls":
			plain = true
		case "ws", "wss":
			webSocket = true
		default:
			return "", false
		}
		if u.Hostname() == "" || u.Port() != "" && !validPort(u.Port(), 1) {
			return "", false
		}
	}
	if plain && webSocket {
		return "WebSocket and other URLs cannot be mixed", false
	}
	return "", true
}

func httpAddr() form {
	f := checked(func(c *Config) *string { return &c.HTTPAddr },
		`host:port, where port 0 is any free one, or "off"`,
		func(s string) (string, bool) { return "", s == HTTPOff || validAddress(s) })
	parse := f.parse
	f.parse = func(c *Config, text string) (string, bool) {
		hint, ok := parse(c, text)
		if ok {
			c.HTTPAddrSet = true
		}
		return hint, ok
	}
	return f
}

func listenAddr(at func(*Config) *string) form {
	return checked(at, "host:port, where port 0 is any free one",
		func(s string) (string, bool) { return "", validAddress(s) })
}

func validAddress(s string) bool {
	host, port, err := net.SplitHostPort(s)
	return err == nil && printable(host) && !strings.ContainsAny(host, " /@") && validPort(port, 0)
}

func validPort(s string, low uint64) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n >= low
}

// The longest identifiers, in bytes. Postgres cuts off what exceeds 63, so
// that two long names can become one; the table's own name leaves room for
// what is appended to it (_published, _migrations, the triggers).
const (
	maxSchemaBytes = 63
	maxTableBytes  = 48
)

func tableName(at func(*Config) *Table) form {
	return form{
		typ:  TypeString,
		want: fmt.Sprintf(`"table" or "schema.table", the table of up to %d bytes, the schema of up to %d`, maxTableBytes, maxSchemaBytes),
		parse: func(c *Config, text string) (string, bool) {
			schema, name, qualified := strings.Cut(text, ".")
			if !qualified {
				schema, name = defaultSchema, text
			}
			if !validIdentifier(schema, maxSchemaBytes) || !validIdentifier(name, maxTableBytes) {
				return "", false
			}
			*at(c) = Table{Schema: schema, Name: name}
			return "", true
		},
		show: func(c *Config) string { return at(c).String() },
	}
}

func validIdentifier(s string, limit int) bool {
	return s != "" && len(s) <= limit && printable(s) &&
		!strings.Contains(s, ".") && strings.TrimSpace(s) == s
}

func filePath(at func(*Config) *string) form {
	return checked(at, "the path of a readable file",
		func(s string) (string, bool) { return "", printable(s) })
}

func directory(at func(*Config) *string) form {
	return checked(at, "the path of a directory",
		func(s string) (string, bool) { return "", s != "" && printable(s) })
}

// maxStreamName is the server's limit.
const maxStreamName = 255

func streamName(at func(*Config) *string) form {
	return checked(at, fmt.Sprintf(`a name of up to %d bytes without spaces and . * > / \`, maxStreamName),
		func(s string) (string, bool) {
			return "", s != "" && len(s) <= maxStreamName && printable(s) &&
				!strings.ContainsFunc(s, unicode.IsSpace) && !strings.ContainsAny(s, `.*>/\`)
		})
}

func electionKey(at func(*Config) *string) form {
	return checked(at, "letters, digits, - _ / = and single dots inside, or empty", func(s string) (string, bool) {
		plain := !strings.ContainsFunc(s, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_/=.", r)
		})
		return "", plain && !strings.HasPrefix(s, ".") && !strings.HasSuffix(s, ".") && !strings.Contains(s, "..")
	})
}

func domainName(at func(*Config) *string) form {
	return checked(at, "a name without spaces and . * >, or empty", func(s string) (string, bool) {
		return "", printable(s) && !strings.ContainsFunc(s, unicode.IsSpace) && !strings.ContainsAny(s, ".*>")
	})
}

func inboxPrefix(at func(*Config) *string) form {
	return checked(at, "a subject without wildcards and without a dot at its end, such as _INBOX_relay, or empty", func(s string) (string, bool) {
		whole := s == "" || !slices.Contains(strings.Split(s, "."), "")
		return "", whole && printable(s) && !strings.ContainsFunc(s, unicode.IsSpace) && !strings.ContainsAny(s, "*>")
	})
}

func tags(at func(*Config) *string) form {
	return checked(at, "tags separated by commas, or empty", func(s string) (string, bool) {
		return "", s == "" || printable(s) && !slices.ContainsFunc(strings.Split(s, ","), func(tag string) bool { return strings.TrimSpace(tag) == "" })
	})
}

func subjectTemplate(at func(*Config) *string) form {
	return checked(at, "a subject without spaces, with the placeholders {topic}, {aggregate_type}, {aggregate_id}, {event_type}", checkSubject)
}

// checkSubject finds what no stream could accept; whether the template fits
// the one it is meant for is package stream's to say.
func checkSubject(s string) (hint string, ok bool) {
	if s == "" || !printable(s) || strings.ContainsFunc(s, unicode.IsSpace) {
		return "", false
	}
	if slices.Contains(strings.Split(s, "."), "") {
		return "a token between two dots is empty", false
	}
	for rest := s; ; {
		i := strings.IndexAny(rest, "{}")
		if i < 0 {
			return "", true
		}
		name, after, closed := strings.Cut(rest[i+1:], "}")
		if rest[i] == '}' || !closed {
			return "a brace has no counterpart", false
		}
		switch name {
		case "topic", "aggregate_type", "aggregate_id", "event_type":
		default:
			return fmt.Sprintf("there is no placeholder %q", name), false
		}
		rest = after
	}
}

func uriReference(at func(*Config) *string) form {
	return checked(at, `a URI reference, such as "/shop/orders", or empty`,
		func(s string) (string, bool) {
			_, err := url.Parse(s)
			return "", err == nil && printable(s) && !strings.ContainsFunc(s, unicode.IsSpace)
		})
}

// printable refuses control characters, NUL among them, and text that is not
// UTF-8: neither Postgres nor NATS takes them in a name, and nobody means them.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}
