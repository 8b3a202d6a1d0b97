package config

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

// Secret is a connection string that may carry a password or a token. It
// prints redacted, whatever the verb; convert it to a string to use it.
type Secret string

// String returns the connection string without passwords and tokens.
func (s Secret) String() string { return Redact(string(s)) }

// Format prints what String returns. A Stringer alone would not do: fmt asks
// it for some verbs only, and %#v or a mistaken %d print the bare value.
func (s Secret) Format(state fmt.State, verb rune) {
	_, _ = fmt.Fprintf(state, fmt.FormatString(state, verb), s.String()) // as fmt itself, which has nobody to tell
}

// MarshalText returns what String returns, for encoding/json and log/slog.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// mask stands for what is not shown.
const mask = "xxxxx"

// Redact returns a Postgres connection string, in URL or keyword form, or a
// comma separated list of NATS URLs without passwords and tokens.
//
// It errs on the side of hiding. Of parameters only those known to be harmless
// are shown, and a string in which a password cannot be told from what
// surrounds it, because it holds an unescaped '/' or '@', say, is masked as a
// whole.
func Redact(s string) string {
	shown, _ := redact(s)
	return shown
}

// redact is Redact; certain says that s was regular, so that it is known where
// its secrets are.
func redact(s string) (shown string, certain bool) {
	switch {
	case s == "" || s == NATSEmbedded:
		return s, true
	case scheme.MatchString(s):
		return redactURLs(s)
	case strings.Contains(s, "="):
		return redactKeywords(s)
	case hostPorts.MatchString(s):
		return s, true
	default:
		// Neither form, and perhaps a password that was put into the wrong
		// variable.
		return mask, false
	}
}

var (
	scheme = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*://`)

	// nextURL finds where the next URL of a list begins. A comma alone does
	// not tell: it may be part of a password.
	nextURL = regexp.MustCompile(`,\s*[A-Za-z][A-Za-z0-9+.-]*://`)

	// hosts is what may follow the user in a URL: host, host:port, or several.
	hosts = regexp.MustCompile(`^` + hostPattern + `(:\d{0,5})?(,` + hostPattern + `(:\d{0,5})?)*$`)

	// hostPorts is a list of servers without a scheme. The port is required,
	// for a lone word is as likely a password.
	hostPorts = regexp.MustCompile(`^` + hostPattern + `:\d{1,5}(,\s*` + hostPattern + `:\d{1,5})*$`)

	keyword = regexp.MustCompile(`^[A-Za-z_]+$`)
)

// hostPattern is a name or IPv4 address, or an IPv6 address in brackets.
const hostPattern = `([A-Za-z0-9._~%-]*|\[[0-9A-Fa-f:.%a-z]*\])`

// redactURLs redacts a list of URLs. One that is odd makes the whole list
// suspect: it may be the middle of a password with a comma in it.
func redactURLs(s string) (shown string, certain bool) {
	prefix := scheme.FindString(s)
	var urls []string
	for rest := s; rest != ""; {
		end, next := len(rest), len(rest)
		if comma := nextURL.FindStringIndex(rest); comma != nil {
			end, next = comma[0], comma[0]+len(",")
		}
		u, ok := redactURL(strings.TrimSpace(rest[:end]))
		if !ok || isPostgresURL(s) && end != len(rest) {
			return prefix + mask, false
		}
		urls = append(urls, u)
		rest = rest[next:]
	}
	return strings.Join(urls, ","), true
}

func redactURL(s string) (shown string, certain bool) {
	prefix := scheme.FindString(s)
	switch prefix {
	case "postgres://", "postgresql://", "nats://", "tls://", "ws://", "wss://":
	default:
		return "", false
	}
	authority, tail := s[len(prefix):], ""
	if i := strings.IndexAny(authority, "/?#"); i >= 0 {
		authority, tail = authority[:i], authority[i:]
	}
	user, servers := "", authority
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		var ok bool
		if user, ok = redactUser(prefix, authority[:i]); !ok {
			return "", false
		}
		user += "@"
		servers = authority[i+1:]
	}
	// An '@' or '#' this late, or a port that is no number, means that what
	// was taken for the host began in the middle of a password.
	if strings.ContainsAny(tail, "@#") || !hosts.MatchString(servers) {
		return "", false
	}
	path, query, found := strings.Cut(tail, "?")
	shown = prefix + user + servers + path
	if found {
		pairs := strings.Split(query, "&")
		for i, pair := range pairs {
			pairs[i] = redactPair(pair)
		}
		shown += "?" + strings.Join(pairs, "&")
	}
	return shown, true
}

// redactUser redacts what stands before the '@' of a URL.
func redactUser(prefix, info string) (shown string, certain bool) {
	if _, err := url.PathUnescape(info); err != nil || info == "" || strings.ContainsAny(info, " \t\n\r\v\f") {
		return "", false
	}
	if !isPostgresURL(prefix) {
		// To NATS, a user without a password is a token; and with one it may
		// still be a token, with a colon that should have been encoded.
		return mask, true
	}
	user, _, password := strings.Cut(info, ":")
	if password {
		user += ":" + mask
	}
	return user, true
}

func redactPair(pair string) string {
	key, value, _ := strings.Cut(pair, "=")
	name, err := url.QueryUnescape(key)
	if err != nil {
		return mask
	}
	return redactParameter(name, value)
}

// redactKeywords redacts libpq's keyword form: key = value, separated by
// space, values in single quotes if need be, backslash escapes.
func redactKeywords(s string) (shown string, certain bool) {
	const space = " \t\n\r\v\f"
	var parameters []string
	for s = strings.Trim(s, space); s != ""; s = strings.TrimLeft(s, space) {
		key, rest, found := strings.Cut(s, "=")
		key = strings.Trim(key, space)
		if !found || !keyword.MatchString(key) {
			return mask, false
		}
		rest = strings.TrimLeft(rest, space)
		end, ok := valueEnd(rest)
		if !ok {
			return mask, false
		}
		parameters = append(parameters, redactParameter(key, rest[:end]))
		s = rest[end:]
		if s != "" && !strings.ContainsRune(space, rune(s[0])) {
			return mask, false
		}
	}
	return strings.Join(parameters, " "), true
}

// valueEnd returns where the value that s begins with ends.
func valueEnd(s string) (end int, ok bool) {
	quoted := strings.HasPrefix(s, "'")
	if quoted {
		end++
	}
	for ; end < len(s); end++ {
		switch c := s[end]; {
		case c == '\\':
			end++
		case quoted && c == '\'':
			return end + 1, true
		case !quoted && strings.IndexByte(" \t\n\r\v\f", c) >= 0:
			return end, true
		}
	}
	return min(end, len(s)), !quoted
}

// redactParameter lists what may be shown rather than what may not: a list of
// secrets is out of date when the next version of Postgres adds one.
func redactParameter(key, value string) string {
	switch strings.ToLower(key) {
	case "host", "hostaddr", "port", "dbname", "database", "user",
		"application_name", "fallback_application_name", "client_encoding", "options",
		"connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval",
		"keepalives_count", "tcp_user_timeout", "target_session_attrs", "load_balance_hosts",
		"sslmode", "sslnegotiation", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslsni",
		"sslcertmode", "ssl", "ssl_min_protocol_version", "ssl_max_protocol_version",
		"min_protocol_version", "max_protocol_version", "channel_binding", "require_auth",
		"gssencmode", "krbsrvname", "service", "servicefile", "passfile",
		"search_path", "timezone", "statement_timeout", "lock_timeout":
		// A URL in a parameter has secrets of its own (dbname may be one).
		if !strings.ContainsAny(value, "@=") && !strings.Contains(value, "://") {
			return key + "=" + value
		}
		return key + "=" + mask
	case "password", "sslpassword":
		return key + "=" + mask
	default:
		// Possibly the second half of a password with a space in it, so the
		// key is not shown either.
		return mask
	}
}
