package store

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// The values of target_session_attrs with which a relay can work: all that it does is to write.
const (
	readWrite = "read-write" // The default: a standby, or a server that takes no writes, is passed over.
	primary   = "primary"    // A standby is passed over.
	anyServer = "any"        // Whoever answers first. On a standby one can look at the outbox, not relay.
)

// target is what a DSN says.
type target struct {
	*pgx.ConnConfig

	attrs string // One of the above.
}

// CheckDSN reports what is wrong with a Postgres URL or keyword string, as [Open] would. The error never quotes it, and
// names only those of its parameters whose names are known: in a string that is not well formed, any part of it may be a
// part of the password.
func CheckDSN(dsn string) error {
	_, err := parseDSN(dsn)
	return err
}

// hidden stands for what is not shown.
const hidden = "xxxxx"

// RedactDSN returns a DSN without its passwords, fit to be shown. Of its parameters it shows the values of those that can
// hold no secret. Of a DSN that is not well formed it shows nothing: any part of it may be a part of the password.
func RedactDSN(dsn string) string {
	given, err := parametersOf(dsn)
	if err != nil {
		return hidden
	}
	shown := make([]string, len(given))
	for i, p := range given {
		switch {
		case slices.Contains(shownParameters(), p.name) && !strings.ContainsAny(p.value, "@="+blanks) && !strings.Contains(p.value, "://"):
			shown[i] = p.name + "=" + p.value
		case slices.Contains(ownParameters(), p.name):
			shown[i] = p.name + "=" + hidden
		default:
			shown[i] = hidden // The name, too, may be a part of a password.
		}
	}
	scheme, rest, isURL := strings.Cut(dsn, "://")
	if !isURL || !isPostgresURL(dsn) {
		return strings.Join(shown, " ")
	}
	target, _, _ := strings.Cut(rest, "?")
	if login, servers, found := strings.Cut(target, "@"); found {
		user, _, hasPassword := strings.Cut(login, ":")
		if hasPassword {
			user += ":" + hidden
		}
		target = user + "@" + servers
	}
	if len(shown) > 0 {
		target += "?" + strings.Join(shown, "&")
	}
	return scheme + "://" + target
}

// shownParameters are those whose values RedactDSN shows. It lists what may be shown, not what may not: the next version of
// Postgres may add another secret.
func shownParameters() []string {
	return []string{
		"host", "port", "dbname", "user", "application_name", "connect_timeout", "target_session_attrs", "sslmode", "sslcertmode", "sslnegotiation",
		"channel_binding", "service", "synchronous_commit", "statement_timeout", "lock_timeout",
	}
}

func isPostgresURL(dsn string) bool {
	return strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://")
}

// parseDSN understands what pgx understands, in so far as that is well formed and can work. The files that the DSN and the
// PG variables name are read: the passfile, the service file and those of TLS.
func parseDSN(dsn string) (target, error) {
	given, err := parametersOf(dsn)
	if err != nil {
		return target{}, err
	}
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return target{}, parseFault(err)
	}
	attrs := readWrite
	if env := os.Getenv("PGTARGETSESSIONATTRS"); env != "" {
		attrs = env
	}
	for _, p := range given {
		if p.name == "target_session_attrs" && p.value != "" {
			attrs = p.value
		}
	}
	switch attrs {
	case readWrite, primary, anyServer:
	default:
		return target{}, errors.New(`parameter target_session_attrs: a relay writes, so it needs "read-write" (the default), "primary" or "any"`)
	}
	if err := sortParameters(config, given); err != nil {
		return target{}, err
	}
	config.ValidateConnect = nil // It is looked up with what else is asked of a new connection.
	return target{config, attrs}, nil
}

// parseFault is what pgx says of a DSN that is well formed, without the DSN, which it quotes with as much of a password as it
// does not recognise, and without values, which it quotes too.
func parseFault(err error) error {
	text := err.Error()
	text = strings.TrimPrefix(text[strings.LastIndexByte(text, '`')+1:], ": ")
	switch {
	case strings.Contains(text, "failed to parse as URL"):
		return errURL
	case strings.Contains(text, "failed to parse as keyword/value"):
		return errKeyword
	}
	for _, accepts := range []struct{ name, mark, want string }{
		{"sslmode", "sslmode is invalid", "disable, allow, prefer, require, verify-ca or verify-full"},
		{"target_session_attrs", "target_session_attrs", "read-write, primary or any"},
		{"sslcertmode", "sslcertmode", "disable, allow or require"},
		{"connect_timeout", "connect_timeout", "a number of seconds"},
		{"channel_binding", "channel_binding", "disable, prefer or require"},
		{"require_auth", "require_auth", "a list of methods, such as scram-sha-256"},
		{"min_protocol_version", "min_protocol_version", "3.0, 3.2 or latest"},
		{"max_protocol_version", "max_protocol_version", "3.0, 3.2 or latest"},
		{"default_query_exec_mode", "default_query_exec_mode", "none: the outbox has its own"},
		{"statement_cache_capacity", "statement_cache_capacity", "none: the outbox has its own"},
		{"description_cache_capacity", "description_cache_capacity", "none: the outbox has its own"},
		{"service", "service", "one that is in the service file, and that file to be readable"},
		{"port", "invalid port", "1 to 65535"},
	} {
		if strings.Contains(text, accepts.mark) {
			return fmt.Errorf("parameter %s: its value is not accepted, want %s", accepts.name, accepts.want)
		}
	}
	return errors.New(text)
}

// parameter is a part of a DSN.
type parameter struct{ name, value string }

var (
	// serversPattern is what may follow the user in a URL: host, host:port, or several. A host may be empty, or the
	// percent-encoded directory of a socket.
	serversPattern = regexp.MustCompile(`^` + serverPattern + `(,` + serverPattern + `)*$`)
	namePattern    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)
)

const (
	serverPattern = `([A-Za-z0-9._~%-]*|\[[0-9A-Fa-f:.%a-z]*\])(:\d{0,5})?`
	blanks        = " \t\n\r\v\f"
)

var (
	errURL     = errors.New("it is not a well-formed URL: in a user name, a password and a value, special characters must be percent-encoded (@ is %40, / is %2F, : is %3A, ? is %3F, # is %23)")
	errKeyword = errors.New("it is not well formed: want postgres://user:password@host:port/database, or keywords as in host=localhost dbname=outbox, with values that hold blanks or quotes in single quotes")
	errJDBC    = errors.New("it is for JDBC: leave out jdbc:, and write the user and the password before the host, as in postgres://user:password@host:port/database")
)

// parametersOf returns the named parameters of a DSN in their order. It is strict where pgx guesses: what a guess takes for
// a host or a database may be the rest of a password, and would be logged.
func parametersOf(dsn string) ([]parameter, error) {
	switch _, rest, _ := strings.Cut(dsn, "://"); {
	case strings.HasPrefix(strings.ToLower(strings.TrimLeft(dsn, blanks)), "jdbc:"):
		return nil, errJDBC
	case isPostgresURL(dsn):
		return parametersOfURL(rest)
	}
	return parametersOfKeywords(dsn)
}

func parametersOfURL(rest string) ([]parameter, error) {
	authority, tail := rest, ""
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority, tail = rest[:i], rest[i:]
	}
	user, servers, found := strings.Cut(authority, "@")
	if !found {
		user, servers = "", authority
	}
	_, userErr := url.PathUnescape(user)
	path, query, _ := strings.Cut(tail, "?")
	_, pathErr := url.PathUnescape(path)
	if userErr != nil || pathErr != nil || !serversPattern.MatchString(servers) || strings.ContainsAny(tail, "@#"+blanks) || strings.Contains(strings.TrimPrefix(path, "/"), "/") {
		return nil, errURL
	}
	var given []parameter
	for pair := range strings.SplitSeq(query, "&") {
		if pair == "" {
			continue
		}
		rawName, rawValue, found := strings.Cut(pair, "=")
		name, nameErr := url.QueryUnescape(rawName)
		value, valueErr := url.QueryUnescape(rawValue)
		if !found || nameErr != nil || valueErr != nil || strings.Contains(rawValue, "=") || !namePattern.MatchString(name) {
			return nil, errURL
		}
		given = append(given, parameter{name, value})
	}
	return given, nil
}

func parametersOfKeywords(rest string) ([]parameter, error) {
	var given []parameter
	for rest = strings.Trim(rest, blanks); rest != ""; rest = strings.TrimLeft(rest, blanks) {
		name, after, found := strings.Cut(rest, "=")
		name = strings.Trim(name, blanks)
		if !found || !namePattern.MatchString(name) {
			return nil, errKeyword
		}
		value, after, ok := keywordValue(strings.TrimLeft(after, blanks))
		if !ok || after != "" && !strings.ContainsRune(blanks, rune(after[0])) {
			return nil, errKeyword
		}
		given = append(given, parameter{name, value})
		rest = after
	}
	return given, nil
}

// keywordValue takes a value off the start of s, which may be in single quotes.
func keywordValue(s string) (value, rest string, ok bool) {
	var b strings.Builder
	quoted := strings.HasPrefix(s, "'")
	i := 0
	if quoted {
		i++
	}
	for ; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case quoted && c == '\'':
			return b.String(), s[i+1:], true
		case !quoted && strings.IndexByte(blanks, c) >= 0:
			return b.String(), s[i:], true
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), "", !quoted
}

// sortParameters refuses what cannot work among the parameters that pgx would send to the server, which include those of
// the PG variables and the service file, and drops what our own settings replace. Names of settings do not depend on case,
// and of two spellings the server would take one or the other.
func sortParameters(config *pgx.ConnConfig, given []parameter) error {
	for name, value := range config.RuntimeParams {
		lower := strings.ToLower(name)
		switch advice, foreign := foreignParameters()[name]; {
		case foreign:
			return fmt.Errorf("parameter %s: %s", name, advice)
		case lower == "gssencmode" && value == "require":
			return errors.New("parameter gssencmode: GSSAPI encryption is not supported: use TLS, as in sslmode=require")
		case slices.Contains(meaningless(), lower), isPinned(lower):
			delete(config.RuntimeParams, name)
		case slices.Contains(passedOn(), lower), strings.Contains(name, "."), strings.HasPrefix(lower, "log_"):
			if name != lower {
				delete(config.RuntimeParams, name)
				config.RuntimeParams[lower] = value
			}
		default:
			return unknownParameter(name, given)
		}
	}
	return nil
}

// unknownParameter does not tell the name unless it is nearly that of another: it may be a part of the password.
func unknownParameter(name string, given []parameter) error {
	normalized := func(s string) string { return strings.ToLower(strings.ReplaceAll(s, "_", "")) }
	for _, known := range slices.Concat(ownParameters(), passedOn(), pinnedNames()) {
		if normalized(known) == normalized(name) {
			return fmt.Errorf("parameter %s: there is none of this name, did you mean %s?", name, known)
		}
	}
	const advice = "leave it out; or, if it is a setting of the server, give it as a part of the parameter options, as in options='-c name=value'"
	if i := slices.IndexFunc(given, func(p parameter) bool { return p.name == name }); i >= 0 {
		return fmt.Errorf("its parameter number %s is not known (the name is not shown, for it may be a part of a password): %s", strconv.Itoa(i+1), advice)
	}
	return fmt.Errorf("a parameter that comes from a service file or a PG variable is not known: %s", advice)
}

// ownParameters are those that pgx itself understands.
func ownParameters() []string {
	return []string{
		"host", "port", "dbname", "user", "password", "passfile", "connect_timeout", "sslmode", "sslkey", "sslcert", "sslcertmode", "sslrootcert",
		"sslnegotiation", "sslpassword", "sslsni", "krbspn", "krbsrvname", "target_session_attrs", "service", "servicefile", "min_protocol_version",
		"max_protocol_version", "channel_binding", "require_auth",
	}
}

// meaningless are parameters of libpq that change nothing here: what they ask for is done anyway, or is not to be had.
func meaningless() []string {
	return []string{
		"fallback_application_name", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "gssencmode", "sslcompression",
		"load_balance_hosts",
	}
}

// passedOn are settings of the server that nothing of ours depends on, and that somebody may have a reason to give.
func passedOn() []string {
	return []string{
		"options", "role", "work_mem", "maintenance_work_mem", "temp_buffers", "temp_tablespaces", "default_tablespace", "default_toast_compression",
		"client_min_messages", "lc_messages", "synchronous_commit", "effective_cache_size", "random_page_cost", "seq_page_cost", "hash_mem_multiplier",
		"max_parallel_workers_per_gather", "max_parallel_maintenance_workers", "session_replication_role", "track_io_timing",
	}
}

// foreignParameters are those of other programs, and of libpq where its answer matters, with what to do about them. Postgres
// would refuse each connection for them.
func foreignParameters() map[string]string {
	const (
		pool   = "it belongs to a connection pool, and the relay has none: leave it out"
		schema = "it is another program's; the outbox's schema is part of the table's name, as in OUTBOX_TABLE=shop.outbox: leave it out"
		driver = "it is another driver's: leave it out"
		tls    = "it is not supported: leave it out; sslmode, sslrootcert, sslcert and sslkey are"
	)
	return map[string]string{
		"pool_max_conns": pool, "pool_min_conns": pool, "pool_min_idle_conns": pool, "pool_max_conn_lifetime": pool, "pool_max_conn_idle_time": pool,
		"pool_health_check_period": pool, "pool_max_conn_lifetime_jitter": pool, "pool_timeout": pool, "connection_limit": pool, "pool_size": pool,
		"max_connections": pool, "maxPoolSize": pool, "minPoolSize": pool,
		"schema": schema, "currentSchema": schema, "current_schema": schema,
		"pgbouncer": "it tells another program of a pooler: connect to the server itself, and leave it out",
		"ssl":       "use sslmode=require, or verify-full",
		"sslaccept": tls, "sslcrl": tls, "sslcrldir": tls, "ssl_min_protocol_version": tls, "ssl_max_protocol_version": tls, "sslfactory": tls,
		"sslidentity": tls, "trustServerCertificate": tls,
		"hostaddr":         "it is not supported: give the address as the host",
		"replication":      "a relay needs an ordinary connection: leave it out",
		"requirepeer":      "it is not supported: leave it out",
		"gssdelegation":    "it is not supported: leave it out",
		"gsslib":           "it is not supported: leave it out",
		"charset":          driver,
		"encoding":         driver,
		"serverTimezone":   driver,
		"useUnicode":       driver,
		"stringtype":       driver,
		"loggerLevel":      driver,
		"socketTimeout":    driver,
		"loginTimeout":     driver,
		"tcpKeepAlive":     driver,
		"prepareThreshold": driver, "reWriteBatchedInserts": driver, "binary_parameters": driver, "disable_prepared_binary_result": driver,
		"targetServerType": "use target_session_attrs=read-write, which is the default", "ApplicationName": driver, "statement_cache_size": driver,
		"prepared_statements": driver, "sslkeypassword": "use sslpassword",
	}
}
